//! Numbers that identify this host and its mapper: in the owner record of a pool, and in catalogue and heads.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use archipelago_protocol::{Error, ErrorCode};

/// The id of the machine, the same after reboots. See machine-id(5): it must not be stored unhashed.
pub(crate) const MACHINE_ID: &str = "/etc/machine-id";
/// The id of the boot.
pub(crate) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// 122 random bits at each read.
pub(crate) const RANDOM_ID: &str = "/proc/sys/kernel/random/uuid";
/// The namespace of process ids: its inode is its number.
const NAMESPACE: &str = "/proc/self/ns/pid";
/// Parameters of FNV-1a with 128 bits: draft-eastlake-fnv, section 5.
const FNV_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const FNV_PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
/// Makes the hash differ from that of another program.
const SALT: &str = "archipelago owner 1:";

/// The id of a starting mapper: random, unique.
///
/// # Errors
/// [`ErrorCode::Io`] if it cannot be read from the kernel.
pub(crate) fn fresh_incarnation() -> Result<u128, Error> {
    let failed = |why: String| Error::new(ErrorCode::Io, format!("{RANDOM_ID}: {why}"));
    let text = std::fs::read_to_string(RANDOM_ID).map_err(|error| failed(error.to_string()))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).ok();
    id.filter(|id| *id != 0 && digits.len() == 32)
        .ok_or_else(|| failed(format!("`{}` is no random id", text.trim())))
}

/// This host, as owner records distinguish it from others. 0: unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIdentity {
    /// The machine; the same after reboots.
    pub machine: u32,
    /// The running kernel.
    pub boot: u64,
    /// The namespace of process ids.
    pub namespace: u32,
    /// Its name, for messages.
    pub name: String,
}

/// The identity of this host.
#[must_use]
pub fn host_identity() -> HostIdentity {
    // Folded: in FNV-1a, the last bytes of the input do not affect each byte of the sum.
    let folded = |path| fold(first_of(&[Path::new(path)]));
    let namespace = std::fs::metadata(NAMESPACE).map_or(0, |found| found.ino());
    let name = nix::sys::utsname::uname();
    HostIdentity {
        machine: folded(MACHINE_ID)[0] ^ folded(MACHINE_ID)[1],
        boot: u64::from(folded(BOOT_ID)[0]) << 32 | u64::from(folded(BOOT_ID)[1]),
        namespace: u32::try_from(namespace).unwrap_or(0),
        name: name.map_or_else(
            |_unknown| String::new(),
            |name| name.nodename().to_string_lossy().into_owned(),
        ),
    }
}

/// The four words of `number` as two.
fn fold(number: u128) -> [u32; 2] {
    let word = |at: u32| u32::try_from(number >> (32 * at) & u128::from(u32::MAX)).unwrap_or(0);
    [word(3) ^ word(1), word(2) ^ word(0)]
}

fn first_of(sources: &[&Path]) -> u128 {
    sources
        .iter()
        .filter_map(|source| std::fs::read_to_string(source).ok())
        .find_map(|text| number(text.trim()))
        .unwrap_or(0)
}

/// Parses an id. `None` for a machine-id before the first boot: empty, or `uninitialized`.
fn number(id: &str) -> Option<u128> {
    let digits = id.bytes().filter(u8::is_ascii_hexdigit).count();
    (digits == 32).then(|| {
        SALT.bytes().chain(id.bytes()).fold(FNV_BASIS, |sum, byte| {
            (sum ^ u128::from(byte)).wrapping_mul(FNV_PRIME)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_mappers_have_one_id() {
        let ids = [(); 2].map(|()| fresh_incarnation().unwrap());
        assert!(ids[0] != ids[1] && ids[0] != 0 && ids[1] != 0);
    }

    #[test]
    fn a_host_is_known_by_its_first_identity() {
        let dir = tempfile::tempdir().unwrap();
        let (machine, boot) = (dir.path().join("machine"), dir.path().join("boot"));
        assert_eq!(first_of(&[&machine, &boot]), 0);
        std::fs::write(&boot, "a0b1c2d3-e4f5-4a6b-8c7d-0123456789ab\n").unwrap();
        let of_boot = first_of(&[&machine, &boot]);
        assert_ne!(of_boot, 0);
        std::fs::write(&machine, "uninitialized\n").unwrap();
        assert_eq!(first_of(&[&machine, &boot]), of_boot);
        std::fs::write(&machine, "0123456789abcdef0123456789abcdef\n").unwrap();
        let of_machine = first_of(&[&machine, &boot]);
        assert_ne!(of_machine, of_boot);
        // Ids that people make up differ in their last digits.
        std::fs::write(&machine, "0123456789abcdef0123456789abcdee\n").unwrap();
        let [neighbour, of_host] = [first_of(&[&machine]), of_machine].map(fold);
        assert_ne!(neighbour[0] ^ neighbour[1], of_host[0] ^ of_host[1]);
        assert_ne!(of_machine, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
    }
}
