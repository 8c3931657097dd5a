//! `image export`: a copy, raw with holes where there are zeros if the target can have holes, or in another format. Only data is read.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use archipelago_api::client::{Client, Method};
use archipelago_api::types::{Bulk, VolumeView};
use archipelago_protocol::error::{DAMAGED_HINT, UNSUPPORTED_FORMAT_HINT};
use archipelago_protocol::{Error, ErrorCode, Name};
use archipelago_segment::{Buffer, Request};
use serde::Serialize;

use super::channel::Channel;
use super::draft::Draft;
use super::encoded::EncodedTarget;
use super::extents::Extents;
use super::failures::write_error;
use super::interrupt::Interrupt;
use super::{progress, zeros};
use crate::commands::volume;
use crate::format::Format;
use crate::options::Export;
use crate::output::Output;

/// Bytes of zeros that are written at once.
const ZEROS_LEN: usize = 1 << 20;

/// The JSON object that an export prints.
#[derive(Debug, Serialize)]
struct Exported<'a> {
    name: &'a Name,
    size: u64,
    format: Format,
}

/// Where the bytes go.
#[derive(Debug)]
struct Target {
    title: String,
    place: Place,
    /// End of what was written.
    position: u64,
}

#[derive(Debug)]
enum Place {
    /// A file with holes where there are zeros. It replaces a former file of its name when it is whole.
    File(Draft),
    Device(File),
    Pipe(File),
}

pub(super) fn run(options: &Export, client: &Client, output: Output) -> Result<(), Error> {
    check(options)?;
    let interrupt = Interrupt::new()?;
    let name = &options.name;
    let bulk: Bulk = client.call(Method::Post, &volume::path(name, "/export"), &())?;
    let channel = Channel::connect(&bulk, &interrupt)?;
    let exported = match options.format {
        Format::Raw => raw(channel, &options.file, bulk.size, &interrupt, output),
        _ => encoded(channel, options, bulk.size, &interrupt, output),
    };
    exported.map_err(|error| explained(error, name, client))?;
    if options.file == "-" {
        // The standard output belongs to the data.
        return Ok(());
    }
    output.print(
        &Exported {
            name,
            size: bulk.size,
            format: options.format,
        },
        |_quiet| String::new(),
    )
}

/// Refuses what no target can be.
fn check(options: &Export) -> Result<(), Error> {
    let refused = |what: &str, hint: &str| {
        let message = format!("{} {what}", options.format.name());
        Err(Error::new(ErrorCode::Invalid, message).with_hint(hint))
    };
    if options.compress.is_some() && options.format != Format::Qcow2 {
        return refused("is not compressed", "--format qcow2 --compress");
    }
    if options.format == Format::Raw {
        return Ok(());
    }
    if options.file == "-" {
        let hint = "name a file, or export raw";
        return refused("is not written to the standard output", hint);
    }
    match std::fs::metadata(&options.file) {
        Ok(found) if !found.is_file() => {
            let what = format!(
                "is written to a file, which {} is not",
                options.file.display()
            );
            refused(&what, "name a file, or export raw")
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

fn raw(
    channel: Channel<'_>,
    file: &OsStr,
    size: u64,
    interrupt: &Interrupt,
    output: Output,
) -> Result<(), Error> {
    let mut target = Target::open(file, size)?;
    copy(channel, &mut target, size, interrupt, output)?;
    target.finish()
}

fn encoded(
    channel: Channel<'_>,
    options: &Export,
    size: u64,
    interrupt: &Interrupt,
    output: Output,
) -> Result<(), Error> {
    let path = Path::new(&options.file);
    let mut target =
        EncodedTarget::create(path, options.format, options.compress, size, interrupt)?;
    let bar = progress::known(size, output);
    let mut data = vec![0; channel.buffer_len()];
    let mut reads = Reads::new(channel, size);
    while let Some((offset, len)) = reads.next(&mut data)? {
        interrupt.check()?;
        target.write(&data[..len], offset)?;
        bar.set_position(offset + len as u64);
    }
    reads.channel.close()?;
    target.finish()?;
    bar.finish_and_clear();
    Ok(())
}

/// Adds to `error` what the node knows: the endpoint reports only that stored data cannot be used.
fn explained(error: Error, name: &Name, client: &Client) -> Error {
    if !error.code.is_of_stored() {
        return error;
    }
    let info: Result<VolumeView, Error> = client.get(&volume::path(name, ""));
    let Ok(info) = info else { return error };
    let (found, hint) = match error.code {
        ErrorCode::UnsupportedFormat => (info.unsupported, UNSUPPORTED_FORMAT_HINT),
        _ => (info.damage, DAMAGED_HINT),
    };
    match found {
        Some(message) => Error::new(error.code, message).with_hint(hint),
        None => error,
    }
}

/// Copies the data, and leaves holes or writes zeros from memory where there is none.
fn copy(
    channel: Channel<'_>,
    target: &mut Target,
    size: u64,
    interrupt: &Interrupt,
    output: Output,
) -> Result<(), Error> {
    let bar = progress::known(size, output);
    let mut data = vec![0; channel.buffer_len()];
    let mut reads = Reads::new(channel, size);
    while let Some((offset, len)) = reads.next(&mut data)? {
        interrupt.check()?;
        target.write(&data[..len], offset, interrupt)?;
        bar.set_position(offset + len as u64);
    }
    target.zeros_to(size, interrupt)?;
    reads.channel.close()?;
    bar.finish_and_clear();
    Ok(())
}

/// The token of a block status request; the token of a read is its number.
const STATUS: u64 = u64::MAX;

/// A read whose data has not been written to the target yet.
#[derive(Debug)]
struct Read {
    offset: u64,
    len: usize,
    /// Its data, once the read has completed.
    data: Option<Buffer>,
}

/// The reads of a copy: as many in flight as there are buffers; one of the buffers may hold a block status request.
#[derive(Debug)]
struct Reads<'a> {
    channel: Channel<'a>,
    extents: Extents,
    /// In ascending order of offsets.
    ahead: VecDeque<Read>,
    /// The number of the first read in `ahead`.
    first: u64,
}

impl<'a> Reads<'a> {
    fn new(channel: Channel<'a>, size: u64) -> Self {
        Reads {
            channel,
            extents: Extents::new(size),
            ahead: VecDeque::new(),
            first: 0,
        }
    }

    /// Puts the next data into `data`, which is as long as a buffer: its offset in the volume, and its length. `None` at the end.
    fn next(&mut self, data: &mut [u8]) -> Result<Option<(u64, usize)>, Error> {
        loop {
            self.send()?;
            if let Some(Read {
                offset,
                len,
                data: Some(buffer),
            }) = self.ahead.front()
            {
                let (offset, len) = (*offset, *len);
                buffer.read(0, &mut data[..len]);
                self.ahead.pop_front();
                self.first += 1;
                return Ok(Some((offset, len)));
            }
            if self.ahead.is_empty() && self.extents.is_done() {
                return Ok(None);
            }
            let finished = self.channel.wait()?;
            let buffer = finished.buffer.expect("every request here has one");
            if finished.token == STATUS {
                let runs = buffer.status(self.extents.asked_len());
                self.extents.learn(&runs.map_err(impossible)?);
            } else {
                let place = usize::try_from(finished.token - self.first).expect("one of the reads");
                self.ahead[place].data = Some(buffer);
            }
        }
    }

    /// Sends reads while there are free buffers; a block status request goes first.
    fn send(&mut self) -> Result<(), Error> {
        while let Some(buffer) = self.channel.acquire() {
            if let Some(range) = self.extents.question() {
                let request = Request::Status {
                    offset: range.start,
                    range: range.end - range.start,
                    buffer,
                };
                self.channel.submit(STATUS, request)?;
                continue;
            }
            let Some((offset, len)) = self.extents.take(self.channel.buffer_len()) else {
                break;
            };
            let request = Request::Read {
                offset,
                len: u32::try_from(len).expect("at most a buffer"),
                buffer,
            };
            let number = self.first + self.ahead.len() as u64;
            self.channel.submit(number, request)?;
            self.ahead.push_back(Read {
                offset,
                len,
                data: None,
            });
        }
        Ok(())
    }
}

fn impossible(code: ErrorCode) -> Error {
    Error::new(code, "the endpoint returned an invalid block status")
}

impl Target {
    fn open(name: &OsStr, size: u64) -> Result<Target, Error> {
        let (title, place) = if name == "-" {
            let title = "standard output".to_owned();
            let file = std::io::stdout().as_fd().try_clone_to_owned();
            let file = file.map_err(|error| write_error(&title, &error))?;
            (title, Place::Pipe(File::from(file)))
        } else {
            let title = name.display().to_string();
            let place = Place::open(Path::new(name), &title, size)?;
            (title, place)
        };
        Ok(Target {
            title,
            place,
            position: 0,
        })
    }

    /// Writes `data` at `offset`, behind what was written before; zeros in between.
    fn write(&mut self, data: &[u8], offset: u64, interrupt: &Interrupt) -> Result<(), Error> {
        self.zeros_to(offset, interrupt)?;
        let written = match &mut self.place {
            Place::File(draft) => zeros::data_ranges(data).into_iter().try_for_each(|part| {
                let offset = offset + part.start as u64;
                draft.file().write_all_at(&data[part], offset)
            }),
            Place::Device(file) => file.write_all_at(data, offset),
            Place::Pipe(file) => file.write_all(data),
        };
        self.position = offset + data.len() as u64;
        written.map_err(|error| write_error(&self.title, &error))
    }

    /// Zeros from where the last write ended to `end`: a hole in a file, bytes elsewhere.
    fn zeros_to(&mut self, end: u64, interrupt: &Interrupt) -> Result<(), Error> {
        if matches!(self.place, Place::File(_)) {
            return Ok(());
        }
        let zeros = vec![
            0;
            usize::try_from(end - self.position)
                .unwrap_or(usize::MAX)
                .min(ZEROS_LEN)
        ];
        while self.position < end {
            interrupt.check()?;
            let left = usize::try_from(end - self.position).unwrap_or(usize::MAX);
            let part = &zeros[..left.min(zeros.len())];
            let written = match &mut self.place {
                Place::File(_) => Ok(()),
                Place::Device(file) => file.write_all_at(part, self.position),
                Place::Pipe(file) => file.write_all(part),
            };
            written.map_err(|error| write_error(&self.title, &error))?;
            self.position += part.len() as u64;
        }
        Ok(())
    }

    /// Makes all of it durable.
    fn finish(self) -> Result<(), Error> {
        let finished = match self.place {
            Place::File(draft) => draft.publish(),
            Place::Device(file) => file.sync_all(),
            Place::Pipe(_) => Ok(()),
        };
        finished.map_err(|error| write_error(&self.title, &error))
    }
}

impl Place {
    /// Devices and pipes are written in place; a file is written through a [`Draft`].
    fn open(path: &Path, title: &str, size: u64) -> Result<Place, Error> {
        let failed = |error: std::io::Error| write_error(title, &error);
        let file_type = match path.metadata() {
            Ok(found) => Some(found.file_type()),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        if file_type.is_none_or(|found| found.is_file()) {
            let draft = Draft::new(path).map_err(failed)?;
            draft.file().set_len(size).map_err(failed)?;
            return Ok(Place::File(draft));
        }
        let mut file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        if !file_type.is_some_and(|found| found.is_block_device()) {
            return Ok(Place::Pipe(file));
        }
        let room = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if room < size {
            let message = format!("{title}: {room} bytes are less than {size}");
            return Err(Error::new(ErrorCode::NoSpace, message));
        }
        Ok(Place::Device(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes two pieces of data.
    fn write(place: Place) -> Target {
        let mut target = Target {
            title: "target".to_owned(),
            place,
            position: 0,
        };
        let interrupt = Interrupt::new().unwrap();
        target.write(&[1; 512], 1024, &interrupt).unwrap();
        target.write(&[2; 512], 2 << 20, &interrupt).unwrap();
        target.zeros_to(3 << 20, &interrupt).unwrap();
        target
    }

    #[test]
    fn a_device_and_a_pipe_get_the_zeros_that_a_file_has_as_holes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        let mut expected = vec![0; 3 << 20];
        expected[1024..1536].fill(1);
        expected[2 << 20..][..512].fill(2);
        for kind in [Place::Device, Place::Pipe] {
            std::fs::write(&path, vec![7; 3 << 20]).unwrap();
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            write(kind(file)).finish().unwrap();
            assert!(std::fs::read(&path).unwrap() == expected);
        }
        // A file is replaced when the new one is whole, and not before.
        let before = vec![7; 5 << 20];
        std::fs::write(&path, &before).unwrap();
        let open = || Place::open(&path, "target", 3 << 20).unwrap();
        let target = write(open());
        assert!(std::fs::read(&path).unwrap() == before);
        drop(target);
        assert!(std::fs::read(&path).unwrap() == before);
        write(open()).finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == expected);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
