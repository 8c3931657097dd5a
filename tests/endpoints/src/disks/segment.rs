//! A process of one's own on the segment channel, which opens the volume again when its endpoint has died.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

use archipelago_api::client::Client;
use archipelago_api::layout::Layout;
use archipelago_bench::waiting::{now, pause};
use archipelago_protocol::{Access, ErrorCode, Name};
use archipelago_segment::{Request, VolumeClient, VolumeOptions};
use nix::errno::Errno;

use crate::disk::{Disk, Durable, LEN_MAX, Space, TIMEOUT};

/// Between two attempts to open.
const RETRY: Duration = Duration::from_millis(20);

/// An open volume.
#[derive(Debug)]
pub(crate) struct Segment {
    root: PathBuf,
    name: Name,
    access: Access,
    /// `None`: while it is opened anew.
    client: Option<VolumeClient>,
}

/// A request, of which a client makes the one that it sends.
#[derive(Debug, Clone, Copy)]
enum Ask<'a> {
    Read(u64, usize),
    Write(u64, &'a [u8], Durable),
    Flush,
    Zero(u64, u64, Space),
    Discard(u64, u64),
}

impl Segment {
    pub(crate) fn open(root: &Path, name: &str, access: Access) -> Result<Segment> {
        let mut segment = Segment {
            root: root.to_owned(),
            name: name.parse().map_err(Error::other)?,
            access,
            client: None,
        };
        segment.connect().map_err(of_error)?;
        Ok(segment)
    }

    fn connect(&mut self) -> std::result::Result<(), archipelago_protocol::Error> {
        let client = Client::new(Layout::new(Some(&self.root))?);
        let opened = client.open(&self.name, self.access)?;
        let options = VolumeOptions {
            buffers: 1,
            buffer_len: LEN_MAX,
        };
        self.client = Some(VolumeClient::connect(&opened.socket, opened.uid, options)?);
        Ok(())
    }

    fn run(&mut self, ask: Ask<'_>, into: &mut [u8]) -> Result<()> {
        let deadline = now() + TIMEOUT;
        loop {
            let done = match &mut self.client {
                Some(client) => run_once(client, ask, into),
                None => match self.connect() {
                    Ok(()) => continue,
                    Err(error) => Err(error.code),
                },
            };
            match done {
                Ok(()) => return Ok(()),
                // Its process died; or the one before holds it for a moment more.
                Err(ErrorCode::Unavailable | ErrorCode::InUse) if now() < deadline => {
                    self.client = None;
                    pause(RETRY);
                }
                Err(code) => return Err(of_code(code)),
            }
        }
    }
}

fn run_once(
    client: &mut VolumeClient,
    ask: Ask<'_>,
    into: &mut [u8],
) -> std::result::Result<(), ErrorCode> {
    let buffer = || client.buffers().acquire().ok_or(ErrorCode::Internal);
    let short = |len: u64| u32::try_from(len).map_err(|_too_long| ErrorCode::Invalid);
    let request = match ask {
        Ask::Read(offset, len) => Request::Read {
            offset,
            len: short(len as u64)?,
            buffer: buffer()?,
        },
        Ask::Write(offset, data, durable) => {
            let mut buffer = buffer()?;
            buffer.write(0, data);
            Request::Write {
                offset,
                len: short(data.len() as u64)?,
                buffer,
                durable: durable == Durable::Now,
            }
        }
        Ask::Flush => Request::Flush,
        Ask::Zero(offset, len, space) => Request::WriteZeroes {
            offset,
            len: short(len)?,
            keep_space: space == Space::Kept,
            durable: false,
        },
        Ask::Discard(offset, len) => Request::Discard {
            offset,
            len: short(len)?,
        },
    };
    client
        .submit(1, request)
        .map_err(|_gone| ErrorCode::Unavailable)?;
    let finished = client.wait().ok_or(ErrorCode::Unavailable)?;
    finished.result?;
    if let (Ask::Read(..), Some(buffer)) = (ask, finished.buffer) {
        buffer.read(0, into);
    }
    Ok(())
}

/// The errno of a FUSE file for the same.
fn of_code(code: ErrorCode) -> Error {
    let errno = match code {
        ErrorCode::Invalid => Errno::EINVAL,
        ErrorCode::ReadOnly => Errno::EPERM,
        ErrorCode::NoSpace => Errno::ENOSPC,
        ErrorCode::InUse => Errno::EBUSY,
        _ => Errno::EIO,
    };
    Error::from_raw_os_error(errno as i32)
}

fn of_error(error: archipelago_protocol::Error) -> Error {
    match error.code {
        ErrorCode::InUse | ErrorCode::ReadOnly => of_code(error.code),
        _ => Error::other(error),
    }
}

impl Disk for Segment {
    fn size(&mut self) -> Result<u64> {
        let client = Client::new(Layout::new(Some(&self.root)).map_err(Error::other)?);
        let path = format!("/v1/volumes/{}", self.name);
        let view: archipelago_api::types::VolumeView = client.get(&path).map_err(Error::other)?;
        Ok(view.entry.size)
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.run(Ask::Read(offset, into.len()), into)
    }

    fn write(&mut self, offset: u64, data: &[u8], durable: Durable) -> Result<()> {
        self.run(Ask::Write(offset, data, durable), &mut [])
    }

    fn flush(&mut self) -> Result<()> {
        self.run(Ask::Flush, &mut [])
    }

    fn zero(&mut self, offset: u64, len: u64, space: Space) -> Result<()> {
        self.run(Ask::Zero(offset, len, space), &mut [])
    }

    fn discard(&mut self, offset: u64, len: u64) -> Result<()> {
        self.run(Ask::Discard(offset, len), &mut [])
    }
}
