//! Memory that a vhost-user back end can map: all of the guest's memory, in a shared backend.
//!
//! | the command line has | the rewritten one has |
//! |---|---|
//! | `-m SIZE` | in addition a shared memfd of that size, which the machine uses |
//! | `-m SIZE -mem-path DIR` | a file in DIR instead (huge pages), and no `-mem-path`, which QEMU refuses beside a backend |
//! | `-mem-prealloc` | the same: QEMU allocates backends at the start too |
//! | a backend of its own, by `-machine memory-backend=` or `-numa memdev=` | the same; it must be shared |

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use archipelago_protocol::{Error, ErrorCode};

use super::arguments::{is_option, values_of};
use super::options::OptionList;

/// Id of the backend.
const BACKEND: &str = "archipelago-memory";
/// QEMU's spellings of a true value.
const TRUE: [&str; 4] = ["on", "yes", "true", "y"];

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::Invalid, message)
}

/// `arguments` with shared memory.
///
/// # Errors
/// [`ErrorCode::Invalid`] if the size is missing, or a backend is not shared.
pub(super) fn share_memory(mut arguments: Vec<OsString>) -> Result<Vec<OsString>, Error> {
    let backends = backends(&arguments);
    if !backends.is_empty() {
        for backend in &backends {
            check_shared(&arguments, backend)?;
        }
        return Ok(arguments);
    }
    let size = size(&arguments)?;
    let directory = values_of(&arguments, "mem-path").last().cloned();
    let kind: &[u8] = match directory {
        Some(_) => b"memory-backend-file",
        None => b"memory-backend-memfd",
    };
    let mut backend = OptionList::new(kind)
        .with("id", BACKEND.as_bytes())
        .with("size", &size);
    if let Some(directory) = &directory {
        backend = backend.with("mem-path", directory.as_bytes());
    }
    let backend = backend.with("share", b"on");
    while let Some(at) = arguments.iter().position(|one| is_option(one, "mem-path")) {
        // If the value is missing, QEMU reports that.
        arguments.drain(at..(at + 2).min(arguments.len()));
    }
    arguments.extend([
        "-object".into(),
        backend.render(),
        "-machine".into(),
        format!("memory-backend={BACKEND}").into(),
    ]);
    Ok(arguments)
}

/// Ids of the backends that the command line itself assigns to the guest.
fn backends(arguments: &[OsString]) -> Vec<Vec<u8>> {
    let of = |option: &str, key: &str| -> Vec<Vec<u8>> {
        let lists = values_of(arguments, option).map(|value| OptionList::parse(value));
        lists
            .filter_map(|list| list.get(key).map(<[u8]>::to_vec))
            .collect()
    };
    let mut backends = of("machine", "memory-backend");
    backends.extend(of("M", "memory-backend"));
    backends.extend(of("numa", "memdev"));
    backends
}

fn check_shared(arguments: &[OsString], backend: &[u8]) -> Result<(), Error> {
    let objects = values_of(arguments, "object").map(|value| OptionList::parse(value));
    let shared = objects
        .filter(|object| object.get("id") == Some(backend))
        .any(|object| TRUE.iter().any(|value| object.has("share", value)));
    if shared {
        return Ok(());
    }
    let message = format!(
        "the memory backend `{}` is not shared, and a vhost-user disk needs the guest's memory",
        String::from_utf8_lossy(backend)
    );
    let is_json = |value: &OsString| value.as_bytes().starts_with(b"{");
    Err(
        invalid(message).with_hint(match values_of(arguments, "object").any(is_json) {
            true => {
                "a JSON -object is not read: write it as key=value, with share=on, in kvm_extra"
            }
            false => "add share=on to its -object, in kvm_extra",
        }),
    )
}

/// The size of the guest's memory, with its unit: of several `-m` the last one that has a size, as QEMU takes it.
fn size(arguments: &[OsString]) -> Result<Vec<u8>, Error> {
    let size_of = |value: &OsString| {
        let list = OptionList::parse(value);
        list.get("size").or(list.name()).map(<[u8]>::to_vec)
    };
    let mut sizes = values_of(arguments, "m").rev().filter_map(size_of);
    let mut size = sizes.next().unwrap_or_default();
    if !size.first().is_some_and(u8::is_ascii_digit) {
        let value = String::from_utf8_lossy(&size);
        return Err(invalid(format!(
            "-m `{value}`: the size of the guest's memory is missing"
        )));
    }
    if size.iter().all(u8::is_ascii_digit) {
        // MiB: the default unit of -m alone.
        size.push(b'M');
    }
    Ok(size)
}
