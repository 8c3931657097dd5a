//! A client of one open volume: several requests in flight, a descriptor to poll, buffers in the segment.
//!
//! | state | meaning | leaves it |
//! |---|---|---|
//! | live | the endpoint serves | [`VolumeClient::close`]; the endpoint dies, stops or breaks the protocol |
//! | disconnected | requests are refused; requests that were in flight are returned as [`ErrorCode::Unavailable`] | - |
//!
//! Invariants
//! - Each accepted request is returned once, by [`VolumeClient::next`], with its buffer.
//! - `Unavailable` leaves open whether the request was carried out: a write may be done or not. To go on, the client opens the volume
//!   again.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use archipelago_protocol::status::STATUS_PAGE_MAX;
use archipelago_protocol::{Error, ErrorCode, Reply};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use xseg::shared::{ConnectOptions, OnServerDeath, SharedClient};
use xseg::{ClientPort, Completion, Submission};

use crate::buffers::{Buffer, Buffers};
use crate::{BULK_ROLE, BulkFlags, BulkOp, BulkRequest};

/// Requests in flight beside those with a buffer: flushes, discards and the like.
const BARE_REQUESTS: usize = 8;
/// Most buffers of a channel: more requests than one volume may have in flight gain nothing.
const BUFFERS_MAX: usize = 1024;
/// Longest sleep of a connection before it checks again, in milliseconds.
const STEP_MS: u16 = 100;
/// How many such steps a connection may take: 30 s.
const CONNECT_STEPS: u32 = 300;

/// The size of the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeOptions {
    /// Buffers: reads and writes that can be in flight. At most 1024.
    pub buffers: usize,
    /// Bytes of each buffer, rounded up to 4096: the longest read or write. The memory is taken when it is first used.
    pub buffer_len: usize,
}

impl Default for VolumeOptions {
    /// 32 buffers of 128 KiB: a queue that keeps a disk busy.
    fn default() -> VolumeOptions {
        VolumeOptions {
            buffers: 32,
            buffer_len: 128 << 10,
        }
    }
}

/// A request. Offsets and lengths are bytes: multiples of 512, inside the volume.
#[derive(Debug)]
pub enum Request {
    /// Reads `len` bytes at `offset` into the beginning of `buffer`.
    Read {
        /// First byte of the volume.
        offset: u64,
        /// Bytes, at most the buffer's.
        len: u32,
        /// Receives the data.
        buffer: Buffer,
    },
    /// Writes the first `len` bytes of `buffer` to `offset`.
    Write {
        /// First byte of the volume.
        offset: u64,
        /// Bytes, at most the buffer's.
        len: u32,
        /// Holds the data.
        buffer: Buffer,
        /// Durable when it is done, as if a flush followed it.
        durable: bool,
    },
    /// Stores which parts of `range` bytes at `offset` hold data and which are holes at the beginning of `buffer`, for [`Buffer::status`].
    Status {
        /// First byte of the volume.
        offset: u64,
        /// Bytes: up to the whole volume.
        range: u64,
        /// Receives the page.
        buffer: Buffer,
    },
    /// Makes durable what was done before this was submitted.
    Flush,
    /// The range reads as zeros, and its space may be given back.
    Discard {
        /// First byte of the volume.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// The range reads as zeros.
    WriteZeroes {
        /// First byte of the volume.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Its space is not given back.
        keep_space: bool,
        /// Durable when it is done, as if a flush followed it.
        durable: bool,
    },
    /// After all others: makes everything durable and closes the volume. Later requests are refused.
    Close,
}

impl Request {
    /// The request as a ring entry.
    fn encode(&self) -> Submission {
        let (op, offset, len, flags) = match *self {
            Request::Read { offset, len, .. } => (BulkOp::Read, offset, len, BulkFlags::default()),
            Request::Write {
                offset,
                len,
                durable,
                ..
            } => {
                let flags = BulkFlags {
                    durable,
                    ..BulkFlags::default()
                };
                (BulkOp::Write, offset, len, flags)
            }
            Request::Status { offset, .. } => (
                BulkOp::Status,
                offset,
                STATUS_PAGE_MAX,
                BulkFlags::default(),
            ),
            Request::Flush => (BulkOp::Flush, 0, 0, BulkFlags::default()),
            Request::Discard { offset, len } => {
                (BulkOp::Discard, offset, len, BulkFlags::default())
            }
            Request::WriteZeroes {
                offset,
                len,
                keep_space,
                durable,
            } => {
                let flags = BulkFlags {
                    keep_space,
                    durable,
                };
                (BulkOp::Zero, offset, len, flags)
            }
            Request::Close => (BulkOp::Finish, 0, 0, BulkFlags::default()),
        };
        let range = match *self {
            Request::Status { range, .. } => range,
            _ => 0,
        };
        let request = BulkRequest {
            op,
            offset,
            len,
            range,
            memory: self.buffer().map_or(0, Buffer::begin),
            flags,
        };
        request.encode()
    }

    fn buffer(&self) -> Option<&Buffer> {
        match self {
            Request::Read { buffer, .. }
            | Request::Write { buffer, .. }
            | Request::Status { buffer, .. } => Some(buffer),
            Request::Flush
            | Request::Discard { .. }
            | Request::WriteZeroes { .. }
            | Request::Close => None,
        }
    }

    /// The buffer of a request that has one; for a request that was not accepted, with its data.
    #[must_use]
    pub fn into_buffer(self) -> Option<Buffer> {
        match self {
            Request::Read { buffer, .. }
            | Request::Write { buffer, .. }
            | Request::Status { buffer, .. } => Some(buffer),
            Request::Flush
            | Request::Discard { .. }
            | Request::WriteZeroes { .. }
            | Request::Close => None,
        }
    }
}

/// Why a request was not accepted. The request is returned, and nothing has changed.
#[derive(Debug)]
pub enum SubmitError {
    /// The limit of requests in flight is reached: try again when one is done.
    Full(Request),
    /// The channel has ended.
    Gone(Request),
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SubmitError::Full(_) => "as many requests are in flight as may be",
            SubmitError::Gone(_) => "the endpoint went away",
        })
    }
}

impl std::error::Error for SubmitError {}

/// A request that is done.
#[derive(Debug)]
pub struct Finished {
    /// The token that was given to [`VolumeClient::submit`].
    pub token: u64,
    /// Success, or the error.
    pub result: Result<(), ErrorCode>,
    /// The buffer of a request that has one.
    pub buffer: Option<Buffer>,
}

#[derive(Debug)]
struct InFlight {
    token: u64,
    buffer: Option<Buffer>,
}

/// An open volume. Only [`VolumeClient::connect`], [`VolumeClient::wait`] and [`VolumeClient::close`] block.
///
/// ```no_run
/// # use archipelago_segment::{Request, VolumeClient};
/// # fn first_sector(volume: &mut VolumeClient) -> Option<[u8; 512]> {
/// let buffer = volume.buffers().acquire()?;
/// volume.submit(1, Request::Read { offset: 0, len: 512, buffer }).ok()?;
/// let finished = volume.wait()?;
/// finished.result.ok()?;
/// let mut sector = [0; 512];
/// finished.buffer?.read(0, &mut sector);
/// # Some(sector)
/// # }
/// ```
#[derive(Debug)]
pub struct VolumeClient {
    /// `None`: disconnected.
    port: Option<SharedClient>,
    /// The incarnation of the first connection: a server of another one has not seen our requests.
    incarnation: u64,
    buffers: Buffers,
    /// By the cookies of their entries.
    in_flight: Vec<Option<InFlight>>,
    free_cookies: Vec<usize>,
    events: Epoll,
}

impl VolumeClient {
    /// Connects to the endpoint at `socket`, a process of the user `server`, of this one or of root, from the node's answer to an open. The
    /// volume is closed when this is dropped; [`VolumeClient::close`] also reports failures.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] if there is no endpoint, [`ErrorCode::Unsupported`] if it has another version.
    pub fn connect(
        socket: &Path,
        server: Option<u32>,
        options: VolumeOptions,
    ) -> Result<VolumeClient, Error> {
        VolumeClient::connect_while(socket, server, options, || Ok(()))
    }

    /// As [`VolumeClient::connect`], as long as `may_wait`, which is called ten times a second, returns no error.
    ///
    /// # Errors
    /// As [`VolumeClient::connect`], or the error of `may_wait`.
    pub fn connect_while(
        socket: &Path,
        server: Option<u32>,
        options: VolumeOptions,
        may_wait: impl FnMut() -> Result<(), Error>,
    ) -> Result<VolumeClient, Error> {
        let count = options.buffers.clamp(1, BUFFERS_MAX);
        let buffer_len = Buffers::rounded(options.buffer_len);
        let ring_size = (count + BARE_REQUESTS).next_power_of_two();
        let connect = ConnectOptions {
            role: BULK_ROLE,
            client_id: u64::from(std::process::id()),
            ring_size,
            arena_len: count * buffer_len,
            on_server_death: OnServerDeath::Report,
            allowed_uids: server.into_iter().collect(),
        };
        let failed = |error: &dyn fmt::Display| {
            let message = format!("{}: {error}", socket.display());
            Error::new(ErrorCode::Unavailable, message)
        };
        let mut port = SharedClient::connect(socket, connect).map_err(|error| failed(&error))?;
        let events = watch(&port).map_err(|error| failed(&error))?;
        await_welcome(&mut port, socket, may_wait)?;
        Ok(VolumeClient {
            incarnation: port.incarnation(),
            buffers: Buffers::new(port.arena().clone(), buffer_len),
            port: Some(port),
            in_flight: (0..ring_size).map(|_| None).collect(),
            free_cookies: (0..ring_size).rev().collect(),
            events,
        })
    }

    /// The buffers of the channel.
    #[must_use]
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Requests that were accepted and not yet returned.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() - self.free_cookies.len()
    }

    /// Whether the endpoint has disconnected, so that every further request is refused.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.port.is_none()
    }

    /// Sends a request; [`VolumeClient::next`] returns it with `token` when it is done. Requests in flight together are not ordered.
    ///
    /// # Errors
    /// [`SubmitError`], with the request.
    ///
    /// # Panics
    /// If a read or write is longer than its buffer: the caller's mistake.
    pub fn submit(&mut self, token: u64, request: Request) -> Result<(), SubmitError> {
        if let Request::Read { len, .. } | Request::Write { len, .. } = request {
            assert!(
                len as usize <= self.buffers.buffer_len(),
                "the caller keeps to the buffer's length"
            );
        }
        let Some(port) = &mut self.port else {
            return Err(SubmitError::Gone(request));
        };
        let Some(cookie) = self.free_cookies.pop() else {
            return Err(SubmitError::Full(request));
        };
        if port.submit(cookie as u64, request.encode()).is_err() {
            // As many cookies as credits: the connection has just ended.
            self.free_cookies.push(cookie);
            return Err(SubmitError::Gone(request));
        }
        port.publish();
        self.in_flight[cookie] = Some(InFlight {
            token,
            buffer: request.into_buffer(),
        });
        Ok(())
    }

    /// The next request that is done, if any.
    #[expect(
        clippy::should_implement_trait,
        reason = "none now does not mean none later"
    )]
    pub fn next(&mut self) -> Option<Finished> {
        if let Some(port) = &mut self.port {
            if let Some((cookie, completion)) = port.complete() {
                return self.finish(cookie, completion);
            }
            if port.is_connected() && port.incarnation() == self.incarnation {
                return None;
            }
            self.port = None;
        }
        let lost = self.in_flight.iter().position(Option::is_some)?;
        self.take(lost, Err(ErrorCode::Unavailable))
    }

    fn finish(&mut self, cookie: u64, completion: Completion) -> Option<Finished> {
        let result = Reply::decode(&completion).result.map(drop);
        self.take(usize::try_from(cookie).unwrap_or(usize::MAX), result)
    }

    fn take(&mut self, cookie: usize, result: Result<(), ErrorCode>) -> Option<Finished> {
        let InFlight { token, buffer } = self.in_flight.get_mut(cookie)?.take()?;
        self.free_cookies.push(cookie);
        Some(Finished {
            token,
            result,
            buffer,
        })
    }

    /// Asks the endpoint to make [`VolumeClient::as_fd`](AsFd::as_fd) readable when there is something to do. `false`: there is
    /// already, do not sleep. Always followed by [`VolumeClient::wake`].
    #[must_use]
    pub fn prepare_sleep(&mut self) -> bool {
        match &mut self.port {
            Some(port) => port.prepare_sleep(),
            None => self.in_flight() == 0,
        }
    }

    /// Ends what [`VolumeClient::prepare_sleep`] began, and services the connection.
    pub fn wake(&mut self) {
        if let Some(port) = &mut self.port {
            port.wake();
            while port.service() {}
        }
    }

    /// Waits for the next request that is done; `None` if nothing is in flight.
    pub fn wait(&mut self) -> Option<Finished> {
        while self.in_flight() > 0 {
            if let Some(finished) = self.next() {
                return Some(finished);
            }
            if self.prepare_sleep() {
                let mut descriptors = [PollFd::new(self.events.0.as_fd(), PollFlags::POLLIN)];
                // A signal may end the wait early; then it begins again.
                let _woken = poll(&mut descriptors, PollTimeout::NONE);
            }
            self.wake();
        }
        None
    }

    /// Waits until nothing is in flight, makes everything durable and closes the volume.
    ///
    /// # Errors
    /// What was lost; [`ErrorCode::Unavailable`] if the endpoint has disconnected, so that writes which were not flushed may be lost.
    pub fn close(mut self) -> Result<(), Error> {
        while self.wait().is_some() {}
        let failed = |code: ErrorCode| Error::new(code, format!("closing the volume: {code}"));
        self.submit(0, Request::Close)
            .map_err(|_gone| failed(ErrorCode::Unavailable))?;
        let finished = self.wait();
        let result = finished.map_or(Err(ErrorCode::Unavailable), |finished| finished.result);
        result.map_err(failed)
    }
}

impl AsFd for VolumeClient {
    /// Readable when [`VolumeClient::wake`] and then [`VolumeClient::next`] have something to do, after [`VolumeClient::prepare_sleep`].
    /// For `poll`, `epoll` and the like; there is nothing to read from it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.0.as_fd()
    }
}

/// One descriptor for both descriptors of the port.
fn watch(port: &SharedClient) -> Result<Epoll, Errno> {
    let events = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for descriptor in port.fds() {
        events.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    }
    Ok(events)
}

/// Waits until requests can be sent.
fn await_welcome(
    port: &mut SharedClient,
    socket: &Path,
    mut may_wait: impl FnMut() -> Result<(), Error>,
) -> Result<(), Error> {
    for _ in 0..CONNECT_STEPS {
        may_wait()?;
        while port.service() {}
        if port.is_connected() {
            return Ok(());
        }
        // The socket exists from the open on until the volume is closed.
        if !socket.exists() {
            let message = format!("{}: the volume was closed", socket.display());
            return Err(Error::new(ErrorCode::Unavailable, message).with_hint("open it again"));
        }
        if port.is_refused_for_version() {
            let message = "the endpoint speaks another version of the segment";
            return Err(Error::new(ErrorCode::Unsupported, message)
                .with_hint("restart the node: programs and daemon must be of one version"));
        }
        if port.is_refused_for_credentials() {
            let message = "the endpoint does not serve this user";
            return Err(Error::new(ErrorCode::Denied, message)
                .with_hint("be the user of the node daemon, or root"));
        }
        let [doorbell, socket] = port.fds();
        let mut descriptors = [doorbell, socket].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // A signal may end the wait early; then it begins again.
        let _woken = poll(&mut descriptors, PollTimeout::from(STEP_MS));
    }
    let message = "the endpoint did not answer within 30 s";
    Err(Error::new(ErrorCode::Unavailable, message).with_hint("try again"))
}
