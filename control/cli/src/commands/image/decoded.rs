//! A source in a format of QEMU's: `qemu-img map` says where its data is, `qemu-nbd` reads it, in order, several pieces in flight.
//!
//! QEMU reads zeros where a file should go on and has ended. So each run of data is compared with the length of its file: what was cut
//! off is refused, not imported as zeros.

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

/// Reads in flight: enough for each thread that decompresses, few enough to stay in a cache.
const DEPTH: usize = 8;
/// Longest line of a map: its numbers and words take 200 bytes.
const LINE_LEN_MAX: u64 = 4096;
/// CPU time that a map may take: so many seconds, and as many for each GiB of the files.
const MAP_SECONDS: u64 = 300;
const MAP_SECONDS_PER_GIB: u64 = 30;

/// A run of a disk, as `qemu-img map --output=json` prints it.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Run {
    start: u64,
    length: u64,
    /// The file that has it.
    depth: usize,
    zero: bool,
    data: bool,
    /// Where in that file, unless it is compressed.
    #[serde(default)]
    offset: Option<u64>,
}

/// A read that is not taken.
#[derive(Debug)]
struct Ahead {
    offset: u64,
    len: usize,
    buffer: Vec<u8>,
    is_there: bool,
}

/// A source that is decoded.
#[derive(Debug)]
pub(super) struct DecodedReader<'a> {
    title: String,
    layers: Layers,
    server: Server,
    connection: Connection<'a>,
    interrupt: &'a Interrupt,
    map: Map,
    /// What is to be read next of the run that was met last.
    run: std::ops::Range<u64>,
    /// In the order of the disk.
    ahead: VecDeque<Ahead>,
    /// The number of the first of them.
    first: u64,
    spare: Vec<Vec<u8>>,
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
        let node = layers.node();
        let readable = || Permissions {
            read: layers.inherited(),
            ..Permissions::default()
        };
        let (server, connection) = Server::start(&node, &title, readable(), interrupt)?;
        let size = connection.size();
        let refused = |what: String| Error::new(ErrorCode::Invalid, format!("{title}: {what}"));
        if size == 0 || !size.is_multiple_of(SECTOR_SIZE) {
            return Err(refused(format!("holds a disk of {size} bytes")));
        }
        if size > VOLUME_SIZE_MAX {
            let what = format!("holds a disk of {size} bytes, more than {VOLUME_SIZE_MAX}");
            return Err(refused(what));
        }
        let seconds = MAP_SECONDS + (layers.total_len() >> 30) * MAP_SECONDS_PER_GIB;
        let map = Map::start(
            &node,
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
            map,
            run: 0..0,
            ahead: VecDeque::new(),
            first: 0,
            spare: Vec::new(),
        })
    }

    /// Bytes of the disk.
    pub(super) fn len(&self) -> u64 {
        self.connection.size()
    }

    /// Refuses files below the image that were written meanwhile.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        self.layers.check_unchanged()
    }

    /// Exchanges `buffer` for one of its length that holds the next piece. `None`: the end.
    pub(super) fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Piece>, Error> {
        self.interrupt.check()?;
        let result = self.advance(buffer);
        result.map_err(|error| {
            let connection = &self.connection;
            self.server.explain(error, connection, self.interrupt)
        })
    }

    fn advance(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Piece>, Error> {
        self.fill(buffer.len())?;
        while let Some(front) = self.ahead.front() {
            if front.is_there {
                let mut front = self.ahead.pop_front().expect("looked at");
                self.first += 1;
                std::mem::swap(&mut front.buffer, buffer);
                self.spare.push(front.buffer);
                return Ok(Some(Piece {
                    offset: front.offset,
                    len: front.len,
                }));
            }
            self.take_reply()?;
        }
        Ok(None)
    }

    /// Asks for as much as may be in flight.
    fn fill(&mut self, piece_len: usize) -> Result<(), Error> {
        while self.ahead.len() < DEPTH {
            if self.run.is_empty() {
                match self
                    .map
                    .next_data(&self.title, &self.layers, self.interrupt)?
                {
                    Some(run) => self.run = run,
                    None => return Ok(()),
                }
            }
            let offset = self.run.start;
            // To the next multiple of a piece: whole clusters, wherever a run begins.
            let boundary = (offset + 1).next_multiple_of(piece_len as u64);
            let end = boundary.min(self.run.end);
            self.run.start = end;
            let len = u32::try_from(end - offset).expect("at most a piece");
            let number = self.first + self.ahead.len() as u64;
            self.connection
                .send(Command::Read, number, offset, len, &[])?;
            let mut buffer = self.spare.pop().unwrap_or_default();
            buffer.resize(piece_len, 0);
            self.ahead.push_back(Ahead {
                offset,
                len: usize::try_from(len).expect("at most a piece"),
                buffer,
                is_there: false,
            });
        }
        Ok(())
    }

    fn take_reply(&mut self) -> Result<(), Error> {
        let reply = self.connection.reply()?;
        let place = reply.cookie.checked_sub(self.first);
        let place = place.and_then(|place| usize::try_from(place).ok());
        let ahead = place.and_then(|place| self.ahead.get_mut(place));
        let Some(ahead) = ahead.filter(|ahead| !ahead.is_there) else {
            let message = "qemu-nbd answers what was not asked";
            return Err(Error::new(ErrorCode::Internal, message));
        };
        if reply.error != 0 {
            let message = format!(
                "{}: its bytes from {} on cannot be read (error {}): the image is cut off or damaged",
                self.title, ahead.offset, reply.error
            );
            return Err(Error::new(ErrorCode::Damaged, message)
                .with_hint("look at it with `qemu-img check`, or get it again"));
        }
        self.connection.read(&mut ahead.buffer[..ahead.len])?;
        ahead.is_there = true;
        Ok(())
    }
}

/// Where an image has data, as a program finds it while the data is read.
#[derive(Debug)]
struct Map {
    tool: Option<Tool>,
    lines: BufReader<ChildStdout>,
    node: String,
    size: u64,
    /// Up to here the runs go so far.
    known: u64,
}

impl Map {
    fn start(node: &str, size: u64, permissions: Permissions<'_>) -> Result<Map, Error> {
        let program = qemu::find("qemu-img")?;
        let arguments = ["map", "--output=json", node].map(str::to_owned);
        let mut tool = Tool::start(&program, &arguments, permissions)?;
        Ok(Map {
            lines: BufReader::new(tool.stdout()),
            tool: Some(tool),
            node: node.to_owned(),
            size,
            known: 0,
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
            let end = end.filter(|_| run.start == self.known && run.length > 0);
            let end = end.ok_or_else(|| {
                let message = "qemu-img map is not understood: its runs overlap";
                Error::new(ErrorCode::Internal, message)
            })?;
            self.known = end;
            check_run(&run, title, layers)?;
            if !run.zero && run.start < self.size {
                // A raw file below the image may end within a sector: behind it there are zeros.
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
        let nonsense = |what: &str| {
            let message = format!("qemu-img map is not understood: {what}");
            Error::new(ErrorCode::Internal, message)
        };
        read.map_err(|error| nonsense(&error.to_string()))?;
        let text = line.trim().trim_start_matches('[');
        let text = text.trim_end_matches([',', ']']).trim();
        if !text.is_empty() {
            return serde_json::from_str(text)
                .map(Some)
                .map_err(|error| nonsense(&error.to_string()));
        }
        let Some(mut tool) = self.tool.take() else {
            return Ok(None);
        };
        match tool.wait(interrupt)? {
            status if status.success() && self.known >= self.size => Ok(None),
            status if status.success() => Err(nonsense("it ends early")),
            status => {
                let error = tool.failure(ErrorCode::Damaged, &format!("ended ({status})"));
                Err(qemu::in_words(error, &self.node, title))
            }
        }
    }
}

/// Refuses a run that lies where its file has ended.
fn check_run(run: &Run, title: &str, layers: &Layers) -> Result<(), Error> {
    // Also what is zeros: behind the end of a file there is nothing else.
    let (Some(offset), true) = (run.offset, run.data) else {
        return Ok(());
    };
    let Some(len) = layers.len(run.depth) else {
        let message = "qemu-img map is not understood: a file that there is not";
        return Err(Error::new(ErrorCode::Internal, message));
    };
    if offset.checked_add(run.length).is_some_and(|end| end <= len) {
        return Ok(());
    }
    let message = format!(
        "{title} is cut off: its data goes on to byte {}, and the file ends at {len}",
        offset.saturating_add(run.length)
    );
    Err(Error::new(ErrorCode::Damaged, message).with_hint("copy or download it again"))
}
