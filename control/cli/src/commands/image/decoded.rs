//! A source in a QEMU format: `qemu-img map` lists its data runs and `qemu-nbd` reads them in order, several reads in flight.
//!
//! QEMU returns zeros beyond the end of a truncated file. So each run is compared with the length of its file, and a truncated image is
//! refused instead of being imported as zeros.
//!
//! Invariants
//! - Runs are contiguous from 0 on.
//! - `pending[i]` has the NBD cookie `first_cookie + i`; pieces are delivered in ascending order of offsets.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::ChildStdout;

use archipelago_protocol::ids::{SECTOR_SIZE, VOLUME_SIZE_MAX};
use archipelago_protocol::{Error, ErrorCode};
use serde::Deserialize;

use super::interrupt::Interrupt;
use super::layers::{BackingFiles, Layers};
use super::nbd::{Command, Connection};
use super::piece::Piece;
use super::qemu::{self, Server};
use super::source::Source;
use super::tool::{Permissions, Tool};
use crate::format::Format;

/// Reads in flight: enough for each thread that decompresses, few enough for their buffers to stay in the L2 cache.
const DEPTH: usize = 8;
/// Longest line of a map: its numbers and words take 200 bytes.
const LINE_LEN_MAX: u64 = 4096;
/// CPU time limit of `qemu-img map`: a base, plus this much for each GiB of the image files.
const MAP_SECONDS: u64 = 300;
const MAP_SECONDS_PER_GIB: u64 = 30;

/// A run of a disk, as `qemu-img map --output=json` prints it.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Run {
    start: u64,
    length: u64,
    /// Index in the backing chain; 0 is the image itself.
    depth: usize,
    zero: bool,
    data: bool,
    /// Where in that file, unless it is compressed.
    #[serde(default)]
    offset: Option<u64>,
}

/// A read in flight, or complete and not yet consumed.
#[derive(Debug)]
struct PendingRead {
    offset: u64,
    len: usize,
    buffer: Vec<u8>,
    is_complete: bool,
}

/// A source that is decoded.
#[derive(Debug)]
pub(super) struct DecodedReader<'a> {
    title: String,
    layers: Layers,
    server: Server,
    connection: Connection<'a>,
    interrupt: &'a Interrupt,
    runs: DataRuns,
    /// The part of the current data run that is not yet requested.
    unread: std::ops::Range<u64>,
    /// In ascending order of offsets.
    pending: VecDeque<PendingRead>,
    /// NBD cookie of `pending[0]`.
    first_cookie: u64,
    free_buffers: Vec<Vec<u8>>,
}

impl<'a> DecodedReader<'a> {
    /// Opens the image in `source`.
    pub(super) fn open(
        source: &Source,
        format: Format,
        backing: BackingFiles,
        interrupt: &'a Interrupt,
    ) -> Result<Self, Error> {
        let title = source.title().to_owned();
        let layers = Layers::open(
            source.file(),
            &title,
            source.path(),
            format,
            backing,
            interrupt,
        )?;
        let block_node = layers.block_node();
        let readable = || Permissions {
            read: layers.inherited(),
            ..Permissions::default()
        };
        let (server, connection) = Server::start(&block_node, &title, readable(), interrupt)?;
        let size = connection.size();
        check_size(size, &title)?;
        let seconds = MAP_SECONDS + (layers.total_len() >> 30) * MAP_SECONDS_PER_GIB;
        let runs = DataRuns::start(
            &block_node,
            size,
            Permissions {
                cpu: Some(seconds),
                ..readable()
            },
        )?;
        Ok(DecodedReader {
            title,
            layers,
            server,
            connection,
            interrupt,
            runs,
            unread: 0..0,
            pending: VecDeque::new(),
            first_cookie: 0,
            free_buffers: Vec::new(),
        })
    }

    /// Bytes of the disk.
    pub(super) fn len(&self) -> u64 {
        self.connection.size()
    }

    /// Fails if a backing file has changed during the import.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        self.layers.check_unchanged()
    }

    /// Swaps `buffer` with the buffer of the next piece, of the same length. `None` at the end.
    pub(super) fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Piece>, Error> {
        self.interrupt.check()?;
        let result = self.next_piece(buffer);
        result.map_err(|error| {
            let connection = &self.connection;
            self.server.explain(error, connection, self.interrupt)
        })
    }

    fn next_piece(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Piece>, Error> {
        self.fill(buffer.len())?;
        while let Some(front) = self.pending.front() {
            if front.is_complete {
                let mut front = self.pending.pop_front().expect("it is the front");
                self.first_cookie += 1;
                std::mem::swap(&mut front.buffer, buffer);
                self.free_buffers.push(front.buffer);
                return Ok(Some(Piece {
                    offset: front.offset,
                    len: front.len,
                }));
            }
            self.take_reply()?;
        }
        Ok(None)
    }

    /// Sends reads until `DEPTH` are in flight.
    fn fill(&mut self, piece_len: usize) -> Result<(), Error> {
        while self.pending.len() < DEPTH {
            if self.unread.is_empty() {
                match self
                    .runs
                    .next_data(&self.title, &self.layers, self.interrupt)?
                {
                    Some(run) => self.unread = run,
                    None => return Ok(()),
                }
            }
            let offset = self.unread.start;
            // Up to the next multiple of the piece length, so that whole clusters are read.
            let boundary = (offset + 1).next_multiple_of(piece_len as u64);
            let end = boundary.min(self.unread.end);
            self.unread.start = end;
            let len = u32::try_from(end - offset).expect("at most a piece");
            let cookie = self.first_cookie + self.pending.len() as u64;
            self.connection
                .send(Command::Read, cookie, offset, len, &[])?;
            let mut buffer = self.free_buffers.pop().unwrap_or_default();
            buffer.resize(piece_len, 0);
            self.pending.push_back(PendingRead {
                offset,
                len: usize::try_from(len).expect("at most a piece"),
                buffer,
                is_complete: false,
            });
        }
        Ok(())
    }

    fn take_reply(&mut self) -> Result<(), Error> {
        let reply = self.connection.reply()?;
        let index = reply.cookie.checked_sub(self.first_cookie);
        let index = index.and_then(|index| usize::try_from(index).ok());
        let read = index.and_then(|index| self.pending.get_mut(index));
        let Some(read) = read.filter(|read| !read.is_complete) else {
            let message = "qemu-nbd sent a reply with an unknown cookie";
            return Err(Error::new(ErrorCode::Internal, message));
        };
        if reply.error != 0 {
            let message = format!(
                "{}: read error at byte {} (NBD error {}): the image is truncated or damaged",
                self.title, read.offset, reply.error
            );
            return Err(Error::new(ErrorCode::Damaged, message)
                .with_hint("check it with `qemu-img check`, or copy or download it again"));
        }
        self.connection.read(&mut read.buffer[..read.len])?;
        read.is_complete = true;
        Ok(())
    }
}

/// The data runs of an image, streamed from `qemu-img map`.
#[derive(Debug)]
struct DataRuns {
    tool: Option<Tool>,
    lines: BufReader<ChildStdout>,
    block_node: String,
    size: u64,
    /// End of the last run.
    covered: u64,
}

impl DataRuns {
    fn start(block_node: &str, size: u64, permissions: Permissions<'_>) -> Result<DataRuns, Error> {
        let program = qemu::find("qemu-img")?;
        let arguments = ["map", "--output=json", block_node].map(str::to_owned);
        let mut tool = Tool::start(&program, &arguments, permissions)?;
        Ok(DataRuns {
            lines: BufReader::new(tool.stdout()),
            tool: Some(tool),
            block_node: block_node.to_owned(),
            size,
            covered: 0,
        })
    }

    /// The next run of data.
    fn next_data(
        &mut self,
        title: &str,
        layers: &Layers,
        interrupt: &Interrupt,
    ) -> Result<Option<std::ops::Range<u64>>, Error> {
        while let Some(run) = self.next(title, interrupt)? {
            let end = run.start.checked_add(run.length);
            let end = end.filter(|_| run.start == self.covered && run.length > 0);
            let end = end.ok_or_else(|| {
                let message = "invalid output of qemu-img map: its runs are not contiguous";
                Error::new(ErrorCode::Internal, message)
            })?;
            self.covered = end;
            check_run(&run, title, layers)?;
            if !run.zero && run.start < self.size {
                // A raw backing file may end inside a sector; the rest of the sector is zeros. Then the next run begins inside the
                // sector too, which is read again.
                let end = end.min(self.size).next_multiple_of(SECTOR_SIZE);
                return Ok(Some(run.start - run.start % SECTOR_SIZE..end));
            }
        }
        Ok(None)
    }

    fn next(&mut self, title: &str, interrupt: &Interrupt) -> Result<Option<Run>, Error> {
        if self.tool.is_none() {
            return Ok(None);
        }
        if self.lines.buffer().is_empty() {
            interrupt.wait_for(self.lines.get_ref())?;
        }
        let mut line = String::new();
        let read = (&mut self.lines).take(LINE_LEN_MAX).read_line(&mut line);
        let invalid_output = |what: &str| {
            let message = format!("invalid output of qemu-img map: {what}");
            Error::new(ErrorCode::Internal, message)
        };
        read.map_err(|error| invalid_output(&error.to_string()))?;
        let text = line.trim().trim_start_matches('[');
        let text = text.trim_end_matches([',', ']']).trim();
        if !text.is_empty() {
            return serde_json::from_str(text)
                .map(Some)
                .map_err(|error| invalid_output(&error.to_string()));
        }
        let Some(mut tool) = self.tool.take() else {
            return Ok(None);
        };
        match tool.wait(interrupt)? {
            status if status.success() && self.covered >= self.size => Ok(None),
            status if status.success() => Err(invalid_output("it ends early")),
            status => {
                let error = tool.failure(ErrorCode::Damaged, &format!("ended ({status})"));
                Err(qemu::in_words(error, &self.block_node, title))
            }
        }
    }
}

/// Refuses what no volume can hold.
fn check_size(size: u64, title: &str) -> Result<(), Error> {
    let refused = |what: String| Error::new(ErrorCode::Invalid, format!("{title}: {what}"));
    if size == 0 || !size.is_multiple_of(SECTOR_SIZE) {
        return Err(refused(format!("holds a disk of {size} bytes")));
    }
    if size > VOLUME_SIZE_MAX {
        let what = format!("holds a disk of {size} bytes, more than {VOLUME_SIZE_MAX}");
        return Err(refused(what));
    }
    Ok(())
}

/// Refuses a run beyond the end of its file.
fn check_run(run: &Run, title: &str, layers: &Layers) -> Result<(), Error> {
    // Zero runs are checked too: the part beyond the end of a truncated file is such a run.
    let (Some(offset), true) = (run.offset, run.data) else {
        return Ok(());
    };
    let Some(len) = layers.len(run.depth) else {
        let message =
            "invalid output of qemu-img map: it names a file that the image does not have";
        return Err(Error::new(ErrorCode::Internal, message));
    };
    if offset.checked_add(run.length).is_some_and(|end| end <= len) {
        return Ok(());
    }
    let message = format!(
        "{title} is truncated: its data goes on to byte {}, and the file ends at {len}",
        offset.saturating_add(run.length)
    );
    Err(Error::new(ErrorCode::Damaged, message).with_hint("copy or download it again"))
}
