//! `image export`: a raw copy, with holes where there are zeros if the target can have holes.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::PathBuf;

use archipelago_api::client::{Client, Method};
use archipelago_api::types::{Bulk, VolumeView};
use archipelago_protocol::{Error, ErrorCode, Name};
use archipelago_segment::{BulkClient, BulkOp};
use serde::Serialize;

use super::interrupt::Interrupt;
use super::{progress, zeros};
use crate::commands::volume;
use crate::output::Output;

/// What an export says to scripts.
#[derive(Debug, Serialize)]
struct Exported<'a> {
    name: &'a Name,
    size: u64,
}

/// Where the bytes go.
#[derive(Debug)]
struct Target {
    title: String,
    file: File,
    kind: TargetKind,
}

#[derive(Debug, PartialEq, Eq)]
enum TargetKind {
    /// Holes where there are zeros. Removed on failure if we made it.
    File {
        made: Option<PathBuf>,
    },
    Device,
    Pipe,
}

pub(super) fn run(name: &Name, file: &OsStr, client: &Client, output: Output) -> Result<(), Error> {
    let interrupt = Interrupt::new()?;
    let bulk: Bulk = client.call(Method::Post, &volume::path(name, "/export"), &())?;
    let mut channel = BulkClient::connect(&bulk.socket, bulk.uid, interrupt.descriptor())?;
    let mut target = Target::open(file, bulk.size)?;
    let copied = copy(&mut channel, &mut target, bulk.size, &interrupt, output)
        .and_then(|()| target.finish());
    if let Err(error) = copied {
        target.discard();
        return Err(explained(error, name, client));
    }
    if target.kind == TargetKind::Pipe {
        // The standard output belongs to the data.
        return Ok(());
    }
    output.print(
        &Exported {
            name,
            size: bulk.size,
        },
        |_quiet| String::new(),
    )
}

/// The endpoint knows only that something is damaged; the node knows what.
fn explained(error: Error, name: &Name, client: &Client) -> Error {
    if error.code != ErrorCode::Damaged {
        return error;
    }
    let info: Result<VolumeView, Error> = client.get(&volume::path(name, ""));
    match info.map(|info| info.damage) {
        Ok(Some(damage)) => Error::new(ErrorCode::Damaged, damage)
            .with_hint("nothing was changed; restore the object named, or the pool, from a copy"),
        Ok(None) | Err(_) => error,
    }
}

/// Copies everything, several reads ahead of the one write.
fn copy(
    channel: &mut BulkClient<'_>,
    target: &mut Target,
    size: u64,
    interrupt: &Interrupt,
    output: Output,
) -> Result<(), Error> {
    let bar = progress::known(size, output);
    let mut buffer = vec![0; channel.cell_len()];
    let mut free: Vec<usize> = (0..channel.cells()).collect();
    let mut ahead: VecDeque<(usize, u64, usize)> = VecDeque::new();
    let mut done = vec![false; channel.cells()];
    let mut next = 0;
    while next < size || !ahead.is_empty() {
        interrupt.check()?;
        while next < size
            && let Some(cell) = free.pop()
        {
            let len = usize::try_from(size - next)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            channel.submit(cell, BulkOp::Read, next, len)?;
            ahead.push_back((cell, next, len));
            next += len as u64;
        }
        let Some((cell, offset, len)) = ahead.pop_front() else {
            break;
        };
        while !done[cell] {
            done[channel.wait()?] = true;
        }
        done[cell] = false;
        channel.take(cell, &mut buffer[..len]);
        free.push(cell);
        target.write(&buffer[..len], offset)?;
        bar.set_position(offset + len as u64);
    }
    channel.submit(0, BulkOp::Finish, 0, 0)?;
    channel.wait()?;
    bar.finish_and_clear();
    Ok(())
}

impl Target {
    fn open(name: &OsStr, size: u64) -> Result<Target, Error> {
        if name == "-" {
            let title = "standard output".to_owned();
            let file = std::io::stdout()
                .as_fd()
                .try_clone_to_owned()
                .map(File::from);
            let file = file.map_err(|error| write_error(&title, &error))?;
            return Ok(Target {
                title,
                file,
                kind: TargetKind::Pipe,
            });
        }
        let title = name.display().to_string();
        let failed = |error: std::io::Error| write_error(&title, &error);
        let path = PathBuf::from(name);
        let fresh = !path.exists();
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let file_type = file.metadata().map_err(failed)?.file_type();
        let kind = if file_type.is_file() {
            file.set_len(0)
                .and_then(|()| file.set_len(size))
                .map_err(failed)?;
            TargetKind::File {
                made: fresh.then_some(path),
            }
        } else if file_type.is_block_device() {
            let room = file.seek(SeekFrom::End(0)).map_err(failed)?;
            if room < size {
                return Err(Error::new(
                    ErrorCode::NoSpace,
                    format!("{title}: {room} bytes are less than {size}"),
                ));
            }
            TargetKind::Device
        } else {
            TargetKind::Pipe
        };
        Ok(Target { title, file, kind })
    }

    fn write(&mut self, data: &[u8], offset: u64) -> Result<(), Error> {
        let written = match self.kind {
            TargetKind::File { .. } => zeros::data_ranges(data).into_iter().try_for_each(|part| {
                self.file
                    .write_all_at(&data[part.clone()], offset + part.start as u64)
            }),
            TargetKind::Device => self.file.write_all_at(data, offset),
            TargetKind::Pipe => self.file.write_all(data),
        };
        written.map_err(|error| write_error(&self.title, &error))
    }

    fn finish(&mut self) -> Result<(), Error> {
        match self.kind {
            TargetKind::File { .. } | TargetKind::Device => self
                .file
                .sync_all()
                .map_err(|error| write_error(&self.title, &error)),
            TargetKind::Pipe => Ok(()),
        }
    }

    /// Leaves no half copy behind that looks like a whole one.
    fn discard(&self) {
        if let TargetKind::File { made: Some(path) } = &self.kind {
            // What cannot be removed was reported with the failure itself.
            let _removed = std::fs::remove_file(path);
        }
    }
}

fn write_error(title: &str, error: &std::io::Error) -> Error {
    let code = match error.kind() {
        ErrorKind::StorageFull => ErrorCode::NoSpace,
        ErrorKind::NotFound => ErrorCode::NotFound,
        ErrorKind::IsADirectory => ErrorCode::Invalid,
        _ => ErrorCode::Io,
    };
    Error::new(code, format!("{title}: {error}"))
}
