//! A target in a format of QEMU's: `qemu-img create` makes it, `qemu-nbd` writes it.
//!
//! The file has no name before it is whole and durable (`draft`).

use std::path::Path;

use archipelago_protocol::{Error, ErrorCode};
use serde_json::json;

use super::draft::Draft;
use super::failures::write_error;
use super::interrupt::Interrupt;
use super::nbd::{Command, Connection};
use super::qemu::{self, Server};
use super::tool::{Inherited, Permissions, Tool};
use crate::format::{Compression, Format};

/// Bytes that are buffered: clusters of zeros are left out, and a compressed cluster is written once.
const WINDOW_LEN: u64 = 1 << 20;
/// Shortest cluster of the formats that are made here.
const CLUSTER_LEN: usize = 64 << 10;
/// Writes in flight.
const DEPTH: usize = 8;

/// A target that is encoded.
#[derive(Debug)]
pub(super) struct EncodedTarget<'a> {
    title: String,
    draft: Draft,
    server: Server,
    connection: Connection<'a>,
    interrupt: &'a Interrupt,
    /// Where the window begins, a multiple of its length.
    start: u64,
    window: Vec<u8>,
    in_flight: usize,
}

impl<'a> EncodedTarget<'a> {
    /// Makes the target of a disk of `size` bytes.
    pub(super) fn create(
        path: &Path,
        format: Format,
        compression: Option<Compression>,
        size: u64,
        interrupt: &'a Interrupt,
    ) -> Result<Self, Error> {
        let title = path.display().to_string();
        let draft = Draft::new(path).map_err(|error| write_error(&title, &error))?;
        let inherited = Inherited::new(draft.file())?;
        create(&inherited, &title, format, compression, size, interrupt)?;
        let file = json!({ "driver": "file", "filename": inherited.path() });
        let mut node = json!({ "driver": format.name(), "file": file });
        if compression.is_some() {
            node = json!({ "driver": "compress", "file": node });
        }
        let permissions = Permissions {
            write: vec![&inherited],
            ..Permissions::default()
        };
        let node = format!("json:{node}");
        let (server, connection) = Server::start(&node, &title, permissions, interrupt)?;
        if connection.size() != size {
            let message = format!(
                "{title}: a disk of {size} bytes cannot be {}: it would have {}",
                format.name(),
                connection.size()
            );
            return Err(Error::new(ErrorCode::Invalid, message).with_hint("choose another format"));
        }
        Ok(EncodedTarget {
            title,
            draft,
            server,
            connection,
            interrupt,
            start: 0,
            window: vec![0; usize::try_from(WINDOW_LEN).expect("a MiB")],
            in_flight: 0,
        })
    }

    /// Writes `data` at `offset`, behind what was written before.
    pub(super) fn write(&mut self, mut data: &[u8], mut offset: u64) -> Result<(), Error> {
        while !data.is_empty() {
            if offset - self.start >= WINDOW_LEN {
                self.flush_window()?;
                self.start = offset - offset % WINDOW_LEN;
            }
            let at = usize::try_from(offset - self.start).expect("inside the window");
            let part = data.len().min(self.window.len() - at);
            self.window[at..at + part].copy_from_slice(&data[..part]);
            data = &data[part..];
            offset += part as u64;
        }
        Ok(())
    }

    /// Writes the clusters of the window that are not zeros.
    fn flush_window(&mut self) -> Result<(), Error> {
        let left = self.connection.size() - self.start;
        let len = usize::try_from(left.min(WINDOW_LEN)).expect("a window");
        let zeros = |part: &[u8]| part.iter().all(|byte| *byte == 0);
        let mut at = 0;
        while at < len {
            let end = (at + CLUSTER_LEN).min(len);
            if zeros(&self.window[at..end]) {
                at = end;
                continue;
            }
            let from = at;
            while at < len && !zeros(&self.window[at..(at + CLUSTER_LEN).min(len)]) {
                at = (at + CLUSTER_LEN).min(len);
            }
            self.send(from..at)?;
        }
        self.window.fill(0);
        Ok(())
    }

    fn send(&mut self, part: std::ops::Range<usize>) -> Result<(), Error> {
        while self.in_flight >= DEPTH {
            self.take_reply()?;
        }
        let len = u32::try_from(part.len()).expect("at most a window");
        let offset = self.start + part.start as u64;
        let data = &self.window[part];
        let sent = self.connection.send(Command::Write, 0, offset, len, data);
        self.in_flight += 1;
        self.explain(sent)
    }

    fn take_reply(&mut self) -> Result<(), Error> {
        let reply = self.connection.reply();
        let reply = self.explain(reply)?;
        self.in_flight -= 1;
        match reply.error {
            0 => Ok(()),
            number => {
                let error = std::io::Error::from_raw_os_error(i32::try_from(number).unwrap_or(5));
                Err(write_error(&self.title, &error))
            }
        }
    }

    fn explain<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        let (server, connection, interrupt) = (&mut self.server, &self.connection, self.interrupt);
        result.map_err(|error| match server.explain(error, connection, interrupt) {
            // A failed write to the target must not read as damage of the volume.
            error if error.code == ErrorCode::Damaged => Error {
                code: ErrorCode::Io,
                ..error
            },
            error => error,
        })
    }

    /// Writes the rest of the window, makes the file durable, and gives it its name.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.flush_window()?;
        while self.in_flight > 0 {
            self.take_reply()?;
        }
        let flush = self.connection.send(Command::Flush, 0, 0, 0, &[]);
        self.explain(flush)?;
        self.in_flight += 1;
        self.take_reply()?;
        let end = self.connection.send(Command::Disconnect, 0, 0, 0, &[]);
        self.explain(end)?;
        self.server.finish(self.interrupt)?;
        let published = self.draft.publish();
        published.map_err(|error| write_error(&self.title, &error))
    }
}

/// Has `qemu-img` write the empty image.
fn create(
    inherited: &Inherited,
    title: &str,
    format: Format,
    compression: Option<Compression>,
    size: u64,
    interrupt: &Interrupt,
) -> Result<(), Error> {
    let program = qemu::find("qemu-img")?;
    let path = inherited.path();
    let mut arguments = vec!["create", "-q", "-f", format.name()];
    match (format, compression) {
        // Otherwise QEMU rounds the size to what an old BIOS could address.
        (Format::Vpc, _) => arguments.extend(["-o", "force_size=on"]),
        (Format::Qcow2, Some(Compression::Zstd)) => {
            arguments.extend(["-o", "compression_type=zstd"]);
        }
        _ => {}
    }
    let size = size.to_string();
    arguments.extend([path.as_str(), size.as_str()]);
    let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
    let permissions = Permissions {
        write: vec![inherited],
        ..Permissions::default()
    };
    let tool = Tool::start(&program, &arguments, permissions)?;
    tool.finish(interrupt)
        .map_err(|error| qemu::in_words(error, &path, title))
}
