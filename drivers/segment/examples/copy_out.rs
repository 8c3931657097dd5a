//! An example of a program that uses a volume: copies it to a file, several reads ahead, with holes where it reads zeros.
//!
//! ```text
//! cargo run -p archipelago-segment --example copy_out -- NAME FILE
//! ```
//!
//! The two steps of every such program: the node opens the volume and returns its socket, and a channel to that socket moves the data.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use archipelago_api::client::Client;
use archipelago_api::layout::{Layout, ROOT_VARIABLE};
use archipelago_protocol::{Access, Error, ErrorCode, Name};
use archipelago_segment::{Request, VolumeClient, VolumeOptions};

/// Copies `name`, which nobody may write meanwhile, of the node behind `client`, to `file`.
///
/// # Errors
/// The error of the node, the endpoint or the kernel.
pub(crate) fn copy_out(client: &Client, name: &Name, file: &File) -> Result<(), Error> {
    let io = |error: std::io::Error| Error::new(ErrorCode::Io, error.to_string());
    let opened = client.open(name, Access::Read)?;
    let options = VolumeOptions {
        buffers: 8,
        buffer_len: 1 << 20,
    };
    let mut volume = VolumeClient::connect(&opened.socket, opened.uid, options)?;
    file.set_len(opened.size).map_err(io)?;

    let mut offsets = (0..opened.size).step_by(options.buffer_len).peekable();
    let mut ranges: VecDeque<(u64, u32)> = VecDeque::new();
    let mut data = vec![0; options.buffer_len];
    loop {
        // As many reads as there are buffers.
        while let Some(&offset) = offsets.peek()
            && let Some(buffer) = volume.buffers().acquire()
        {
            let len = (opened.size - offset).min(options.buffer_len as u64);
            let len = u32::try_from(len).expect("a buffer has less than 4 GiB");
            let read = Request::Read {
                offset,
                len,
                buffer,
            };
            let unavailable = |error| Error::new(ErrorCode::Unavailable, format!("{error}"));
            volume.submit(offset, read).map_err(unavailable)?;
            ranges.push_back((offset, len));
            offsets.next();
        }
        // The read that completes first.
        let Some(finished) = volume.wait() else { break };
        finished
            .result
            .map_err(|code| Error::new(code, format!("reading `{name}`: {code}")))?;
        let at = ranges
            .iter()
            .position(|(offset, _)| *offset == finished.token);
        let (range, buffer) = (at.and_then(|at| ranges.remove(at)), finished.buffer);
        let (Some((offset, len)), Some(buffer)) = (range, buffer) else {
            continue;
        };
        let data = &mut data[..len as usize];
        buffer.read(0, data);
        if data.iter().any(|byte| *byte != 0) {
            file.write_all_at(data, offset).map_err(io)?;
        }
    }
    volume.close()
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(file)) = (arguments.next(), arguments.next()) else {
        return Err(Error::new(ErrorCode::Invalid, "usage: copy_out NAME FILE"));
    };
    let root = std::env::var_os(ROOT_VARIABLE);
    let client = Client::new(Layout::new(root.as_deref().map(Path::new))?);
    let file = File::create(file).map_err(|error| Error::new(ErrorCode::Io, error.to_string()))?;
    copy_out(&client, &name.parse()?, &file)
}
