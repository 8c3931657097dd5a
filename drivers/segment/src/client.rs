//! The command's side of a bulk copy: cells of the channel's arena, each with at most one request.

use std::os::fd::BorrowedFd;
use std::path::Path;

use archipelago_protocol::error::TOO_LARGE_HINT;
use archipelago_protocol::status::{STATUS_PAGE_MAX, StatusPage, StatusRun};
use archipelago_protocol::{Error, ErrorCode};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xseg::shared::{ConnectOptions, OnServerDeath, SharedClient};
use xseg::{ClientPort, PortError};

use crate::{BULK_ROLE, BulkFlags, BulkOp, BulkRequest};

/// Bytes of a cell: large enough that a request costs little beside its data.
const CELL_LEN: usize = 1 << 20;
/// Most cells in use: enough to keep a disk busy, few enough to stay in a cache.
const CELLS_MAX: usize = 8;
/// Bytes of the page of a status, behind the cells.
const PAGE_LEN: usize = STATUS_PAGE_MAX as usize;
/// Entries of the ring: a power of two, not less than the cells and the page.
const RING_SIZE: usize = 16;
const _: () = assert!(CELLS_MAX < RING_SIZE);
/// How long a wait sleeps at most before it looks again, in milliseconds.
const STEP_MS: u16 = 1000;
/// How many such steps a connection may take.
const CONNECT_STEPS: u32 = 30;

/// A bulk copy, from its client's side. Blocks in [`BulkClient::wait`] only.
#[derive(Debug)]
pub struct BulkClient<'a> {
    port: SharedClient,
    /// Of the connection that we began with: another one has not seen our requests.
    incarnation: u64,
    interrupt: BorrowedFd<'a>,
    cells: usize,
    in_flight: usize,
}

impl<'a> BulkClient<'a> {
    /// Connects to the endpoint at `socket`, a process of the user `server`, of this one or of root. Waiting ends when
    /// `interrupt` becomes readable.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] if nobody is there.
    pub fn connect(
        socket: &Path,
        server: Option<u32>,
        interrupt: BorrowedFd<'a>,
    ) -> Result<BulkClient<'a>, Error> {
        let options = ConnectOptions {
            role: BULK_ROLE,
            client_id: u64::from(std::process::id()),
            ring_size: RING_SIZE,
            arena_len: CELLS_MAX * CELL_LEN + PAGE_LEN,
            on_server_death: OnServerDeath::Report,
            allowed_uids: server.into_iter().collect(),
        };
        let port = SharedClient::connect(socket, options).map_err(|error| {
            Error::new(
                ErrorCode::Unavailable,
                format!("{}: {error}", socket.display()),
            )
        })?;
        let mut client = BulkClient {
            port,
            incarnation: 0,
            interrupt,
            cells: CELLS_MAX,
            in_flight: 0,
        };
        for _ in 0..CONNECT_STEPS {
            while client.port.service() {}
            if client.port.is_connected() {
                client.incarnation = client.port.incarnation();
                return Ok(client);
            }
            if client.port.is_refused_for_version() {
                return Err(Error::new(
                    ErrorCode::Unsupported,
                    "the endpoint speaks another version of the segment",
                )
                .with_hint("restart the node: command and daemon must be of one version"));
            }
            client.sleep()?;
        }
        Err(gone())
    }

    /// Cells there are.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.cells
    }

    /// Bytes of a cell.
    #[must_use]
    pub fn cell_len(&self) -> usize {
        CELL_LEN
    }

    /// Requests without an answer yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn place(&self, cell: usize) -> u64 {
        assert!(cell < self.cells, "cells are numbered from 0");
        (cell * CELL_LEN) as u64
    }

    /// Puts `data` into `cell`, which has no request in flight.
    ///
    /// # Panics
    /// If it is longer than the cell: our own mistake.
    pub fn fill(&mut self, cell: usize, data: &[u8]) {
        assert!(data.len() <= CELL_LEN, "the caller keeps to cell_len");
        self.port
            .arena()
            .write(self.place(cell), data)
            .expect("cells are inside the arena");
    }

    /// Takes data out of `cell`.
    ///
    /// # Panics
    /// If `into` is longer than the cell: our own mistake.
    pub fn take(&self, cell: usize, into: &mut [u8]) {
        assert!(into.len() <= CELL_LEN, "the caller keeps to cell_len");
        self.port
            .arena()
            .read(self.place(cell), into)
            .expect("cells are inside the arena");
    }

    /// Sends a request on `cell`.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] if the endpoint has gone.
    pub fn submit(
        &mut self,
        cell: usize,
        op: BulkOp,
        offset: u64,
        len: usize,
    ) -> Result<(), Error> {
        let len = u32::try_from(len)
            .map_err(|_too_long| Error::new(ErrorCode::Invalid, "a bulk request of 4 GiB"))?;
        let request = BulkRequest {
            op,
            offset,
            len,
            memory: self.place(cell),
            range: 0,
            flags: BulkFlags::default(),
        };
        self.send(cell, request)
    }

    /// What [`BulkClient::wait`] returns for an answer to [`BulkClient::ask_status`]. Not a cell.
    #[must_use]
    pub fn status_cell(&self) -> usize {
        self.cells
    }

    /// Asks which of `range` bytes of the volume at `offset` hold data, while no such question is in flight.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] if the endpoint has gone.
    pub fn ask_status(&mut self, offset: u64, range: u64) -> Result<(), Error> {
        let request = BulkRequest {
            op: BulkOp::Status,
            offset,
            len: STATUS_PAGE_MAX,
            memory: (self.cells * CELL_LEN) as u64,
            range,
            flags: BulkFlags::default(),
        };
        self.send(self.status_cell(), request)
    }

    /// The answer to the question about `range` bytes that [`BulkClient::wait`] has returned: one run at least, and not more
    /// than was asked for.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`] if the endpoint's answer cannot be.
    ///
    /// # Panics
    /// Never: the page is inside the arena.
    pub fn status(&self, range: u64) -> Result<Vec<StatusRun>, Error> {
        let mut page = [0; PAGE_LEN];
        self.port
            .arena()
            .read((self.cells * CELL_LEN) as u64, &mut page)
            .expect("the page is inside the arena");
        let page = StatusPage::decode(&page, range).map_err(|code| {
            Error::new(code, "the endpoint answers a block status that cannot be")
        })?;
        Ok(page.runs().collect())
    }

    fn send(&mut self, cell: usize, request: BulkRequest) -> Result<(), Error> {
        match self.port.submit(cell as u64, request.encode()) {
            Ok(()) => {
                self.in_flight += 1;
                self.port.publish();
                Ok(())
            }
            Err(PortError::Full) => Err(Error::new(
                ErrorCode::Internal,
                "a bulk channel has fewer credits than cells",
            )),
            Err(_broken) => Err(gone()),
        }
    }

    /// Waits for the next answer and gives its cell back, or [`BulkClient::status_cell`].
    ///
    /// # Errors
    /// What the endpoint answered; [`ErrorCode::Unavailable`] if it has gone, or the wait was interrupted.
    ///
    /// # Panics
    /// Never: the cookies that come back are the cells that were sent.
    pub fn wait(&mut self) -> Result<usize, Error> {
        loop {
            if let Some((cookie, completion)) = self.port.complete() {
                self.in_flight -= 1;
                if completion.result < 0 {
                    let code = ErrorCode::from_result(completion.result);
                    let error = Error::new(code, format!("copying failed: {}", what(code)));
                    return Err(match code {
                        ErrorCode::NoSpace => error.with_hint(
                            "free some space in the pool, or grow its file system, and try again",
                        ),
                        ErrorCode::TooLarge => error.with_hint(TOO_LARGE_HINT),
                        _ => error,
                    });
                }
                return Ok(usize::try_from(cookie).expect("cookies are cells"));
            }
            if !self.port.is_connected() || self.port.incarnation() != self.incarnation {
                return Err(gone());
            }
            if self.port.prepare_sleep() {
                self.sleep()?;
            }
            self.port.wake();
            while self.port.service() {}
        }
    }

    /// Sleeps until something has come, or for a step.
    fn sleep(&self) -> Result<(), Error> {
        let [doorbell, socket] = self.port.fds();
        let mut descriptors =
            [self.interrupt, doorbell, socket].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut descriptors, PollTimeout::from(STEP_MS)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::new(ErrorCode::Internal, format!("poll: {errno}"))),
        }
        let interrupted = descriptors[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLIN));
        if interrupted {
            Err(Error::new(ErrorCode::Unavailable, "interrupted"))
        } else {
            Ok(())
        }
    }
}

fn gone() -> Error {
    Error::new(
        ErrorCode::Unavailable,
        "the endpoint went away during the copy",
    )
    .with_hint("try again")
}

/// A code as people read it.
fn what(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::NoSpace => "the pool's file system is full",
        ErrorCode::NoDescriptors => "no file descriptor is free",
        ErrorCode::NoMemory => "the host has no memory for it",
        ErrorCode::NoRunSpace => "the run directory is full",
        ErrorCode::TooLarge => "a file of the pool may not get so large",
        ErrorCode::Damaged => "the volume is damaged",
        ErrorCode::Io => "the pool reports an input or output error",
        ErrorCode::SyncFailed => "the pool failed to make it durable",
        ErrorCode::Stale => "somebody else has taken the volume over",
        ErrorCode::ReadOnly => "it is read-only",
        ErrorCode::Unavailable => "a peer is not there",
        ErrorCode::Denied => "the endpoint may not do that",
        ErrorCode::Invalid | ErrorCode::Unsupported => "the endpoint refuses the request",
        ErrorCode::NotFound | ErrorCode::Exists | ErrorCode::InUse | ErrorCode::Internal => {
            "a mistake of ours"
        }
    }
}
