//! Sources whose length is known only at their end, such as pipes: copied to an unnamed file first.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use archipelago_protocol::ids::VOLUME_SIZE_MAX;
use archipelago_protocol::{Error, ErrorCode};

use super::failures::read_error;
use super::interrupt::Interrupt;
use super::{progress, zeros};
use crate::output::Output;

/// Bytes that are taken from a pipe at once.
const PIPE_STEP: usize = 1 << 20;

/// Copies a pipe to an unnamed file, sparse.
pub(super) fn spool(
    mut input: impl Read + AsFd,
    title: &str,
    interrupt: &Interrupt,
    output: Output,
) -> Result<File, Error> {
    let failed = |error: std::io::Error| {
        let code = if error.kind() == ErrorKind::StorageFull {
            ErrorCode::NoSpace
        } else {
            ErrorCode::Io
        };
        Error::new(
            code,
            format!("spooling {title} to a temporary file: {error}"),
        )
        .with_hint("set $TMPDIR to a directory with enough space for the data")
    };
    let file = tempfile::tempfile().map_err(failed)?;
    let mut buffer = vec![0; PIPE_STEP];
    let mut len = 0;
    let bar = progress::arrival(output);
    loop {
        let part = fill(&mut input, &mut buffer, title, interrupt)?;
        for range in zeros::data_ranges(&buffer[..part]) {
            let offset = len + range.start as u64;
            file.write_all_at(&buffer[range], offset).map_err(failed)?;
        }
        len += part as u64;
        bar.set_position(len);
        if len > VOLUME_SIZE_MAX {
            let text = format!("{title}: more than {VOLUME_SIZE_MAX} bytes");
            return Err(Error::new(ErrorCode::Invalid, text));
        }
        if part < buffer.len() {
            file.set_len(len).map_err(failed)?;
            bar.finish_and_clear();
            return Ok(file);
        }
    }
}

/// Reads until `buffer` is full or the pipe ends.
fn fill(
    input: &mut (impl Read + AsFd),
    buffer: &mut [u8],
    title: &str,
    interrupt: &Interrupt,
) -> Result<usize, Error> {
    let mut filled = 0;
    while filled < buffer.len() {
        interrupt.wait_for(input.as_fd())?;
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(part) => filled += part,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(read_error(title, &error)),
        }
    }
    Ok(filled)
}
