//! A client's requests: received, validated, cut into pieces and sent to the volume, in the order in which they arrive.
//!
//! The resources that a request waits for (a place, room for its reply, a buffer) are released by earlier requests, and by those of other
//! clients that the volume works on: no client can delay another one for longer than the volume does.

use std::rc::Rc;
use std::time::Duration;

use archipelago_nbd_protocol::command::Command;
use archipelago_nbd_protocol::offer::PIECE_MAX;
use archipelago_nbd_protocol::pieces::Range;
use archipelago_nbd_protocol::request::{HEADER_LEN, Header};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::end::End;
use crate::flights::Flight;
use crate::link::{Link, reply_len};
use crate::places::Place;

/// How long a client may take between two parts of a write's data.
const STALL_MAX: Duration = Duration::from_secs(30);
/// How long a client may take to disconnect after the last reply.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// Bytes that are received and not passed to the volume: several pieces, so that the bytes behind a piece are seldom moved to the front.
const INPUT_LEN: usize = 4 * PIECE_MAX as usize;

/// Bytes from a client.
struct Input<R> {
    stream: R,
    /// Zeros where nothing was received yet.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl<R: AsyncRead + Unpin> Input<R> {
    fn new(stream: R) -> Self {
        Input {
            stream,
            bytes: vec![0; INPUT_LEN],
            start: 0,
            end: 0,
        }
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    /// Receives some bytes. They are kept if the caller stops waiting. `false`: the end.
    async fn receive(&mut self, wanted: usize) -> Result<bool, End> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start + wanted > self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.len());
        }
        let received = self.stream.read(&mut self.bytes[self.end..]).await?;
        self.end += received;
        Ok(received > 0)
    }

    /// Waits until there are `len` bytes of data, at most [`INPUT_LEN`].
    async fn await_data(&mut self, len: usize) -> Result<(), End> {
        while self.len() < len {
            let received = timeout(STALL_MAX, self.receive(len)).await;
            if !received.map_err(|_late| End::Stalled)?? {
                return Err(End::Disconnected);
            }
        }
        Ok(())
    }

    /// The next `len` bytes, which were received.
    fn take(&mut self, len: usize) -> &[u8] {
        let at = self.start;
        self.start += len;
        &self.bytes[at..self.start]
    }
}

/// The direction from the client.
pub(crate) struct Receiver<'a, R> {
    input: Input<R>,
    link: &'a Rc<Link>,
    ending: watch::Receiver<bool>,
}

impl<'a, R: AsyncRead + Unpin> Receiver<'a, R> {
    pub(crate) fn new(stream: R, link: &'a Rc<Link>, ending: watch::Receiver<bool>) -> Self {
        Receiver {
            input: Input::new(stream),
            link,
            ending,
        }
    }

    /// Receives requests until the client ends its side, or the server ends.
    ///
    /// # Errors
    /// Why the connection ends at once.
    pub(crate) async fn receive(&mut self) -> Result<(), End> {
        while let Some(header) = self.next_header().await? {
            self.link.await_room().await;
            match header.check(&self.link.terms) {
                Err(errno) => {
                    self.link.refuse(&header, errno);
                    self.skip(header.data_len()).await?;
                }
                Ok(Command::Disconnect) => return Ok(()),
                Ok(command) if command.is_noop(header.len) => self.link.noop(&header),
                Ok(command) => self.carry_out(command, &header).await?,
            }
        }
        Ok(())
    }

    /// Discards what still arrives until the client has disconnected, for a short time: a socket that is closed with unread data is reset,
    /// and replies on their way are lost.
    pub(crate) async fn drain(&mut self) {
        let ended = timeout(DRAIN_MAX, async {
            loop {
                (self.input.start, self.input.end) = (0, 0);
                if !self.input.receive(1).await.unwrap_or(false) {
                    return;
                }
            }
        });
        // A client that has not disconnected has received its replies by now.
        ended.await.unwrap_or_default();
    }

    /// The next request; `None` at the end.
    async fn next_header(&mut self) -> Result<Option<Header>, End> {
        loop {
            if *self.ending.borrow() {
                return Ok(None);
            }
            if self.input.len() >= HEADER_LEN {
                break;
            }
            let more = tokio::select! {
                more = self.input.receive(HEADER_LEN) => more?,
                _ = self.ending.wait_for(|ending| *ending) => return Ok(None),
            };
            // Between two requests some clients disconnect without a request for it.
            if !more {
                return match self.input.len() {
                    0 => Ok(None),
                    _ => Err(End::Disconnected),
                };
            }
        }
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(self.input.take(HEADER_LEN));
        Header::decode(&bytes).map(Some).map_err(End::Violation)
    }

    /// Discards data of a refused write.
    async fn skip(&mut self, len: u32) -> Result<(), End> {
        let mut left = len as usize;
        while left > 0 {
            self.input.await_data(1).await?;
            let dropped = left.min(self.input.len());
            self.input.take(dropped);
            left -= dropped;
        }
        Ok(())
    }

    /// Passes a request to the volume, piece by piece.
    async fn carry_out(&mut self, command: Command, header: &Header) -> Result<(), End> {
        let link = self.link;
        let request = link.insert(command, header).await;
        if link.is_whole(command) {
            return self.read_whole(request, header.len).await;
        }
        while let Some(range) = link.next_range(request) {
            if let Command::Write { .. } = command {
                self.input.await_data(range.len as usize).await?;
            }
            link.promise(reply_len(command, range)).await;
            link.volume.acquire(Place::of(command), 1).await?;
            self.submit(request, command)?;
        }
        Ok(())
    }

    /// Passes all pieces of a read to the volume at once: the reply is sent when all of them are done.
    async fn read_whole(&mut self, request: u16, len: u32) -> Result<(), End> {
        let pieces = len.div_ceil(PIECE_MAX);
        let range = Range { offset: 0, len: 0 };
        let headers = pieces as usize * reply_len(Command::Read, range);
        self.link.promise(headers + len as usize).await;
        self.link.volume.acquire(Place::Read, pieces).await?;
        for _ in 0..pieces {
            self.submit(request, Command::Read)?;
        }
        Ok(())
    }

    /// Passes the next piece of a request to the volume: its resources were acquired.
    fn submit(&mut self, request: u16, command: Command) -> Result<(), End> {
        let volume = &self.link.volume;
        let Some((piece, range)) = self.link.cut(request) else {
            debug_assert!(false, "a piece more than there are");
            return Ok(());
        };
        let data = match command {
            Command::Write { .. } => self.input.take(range.len as usize),
            _ => &[],
        };
        let flight = Flight {
            requester: Rc::<Link>::clone(self.link),
            request,
            piece,
            command,
            range,
        };
        volume.submit(flight, data)
    }
}
