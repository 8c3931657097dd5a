//! The control socket of a data process: threads that read requests and pass them to the reactor.
//!
//! Invariants
//! - One request a connection, one JSON object a line, each answered exactly once or the connection ends.
//! - Nothing here touches a peer: a request is passed on to the reactor, and its answer comes back over an [`Answer`].
//! - A request whose client has disconnected while the request waited in the socket's queue is not carried out.
//! - A request has a thread of its own. [`THREADS_KEPT`] are there from the start; beyond them one is started. If that fails (the limit of
//!   threads is reached), the request waits for one of those.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use archipelago_protocol::control::{ControlReply, ControlRequest, LINE_LEN_MAX};
use archipelago_protocol::{Error, ErrorCode};
use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xseg::receive_with_descriptors;

/// Pause after a connection could not be accepted: the process has no spare descriptor.
const ACCEPT_PAUSE_MS: u16 = 200;

/// Threads that are always there: for a request that hangs, one that changes something, and the status.
const THREADS_KEPT: usize = 3;

/// Receives the one answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    sender: mpsc::SyncSender<ControlReply>,
}

impl Answer {
    pub(crate) fn send(self, reply: ControlReply) {
        // The thread that sent the request waits for the answer; if that thread has ended, so has the process.
        let _ended = self.sender.send(reply);
    }

    pub(crate) fn fail(self, error: Error) {
        self.send(ControlReply::Failed(error));
    }

    /// Answers `Done` or the error.
    pub(crate) fn result(self, result: Result<(), Error>) {
        match result {
            Ok(()) => self.send(ControlReply::Done),
            Err(error) => self.fail(error),
        }
    }
}

/// Serves `listener` on threads of its own; `deliver` passes a job to the reactor. The receiver gets a message when a stop has been
/// answered: then the process may end.
pub(crate) fn serve(
    listener: UnixListener,
    deliver: impl Fn(ControlRequest, Option<OwnedFd>, Answer) + Send + Sync + 'static,
) -> std::io::Result<mpsc::Receiver<()>> {
    let (stopped, answered) = mpsc::channel();
    let threads = Threads::start(deliver, stopped)?;
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            let mut failures = 0_u64;
            for stream in listener.incoming() {
                match stream {
                    Ok(stream) => {
                        failures = 0;
                        threads.add(stream);
                    }
                    Err(error) => {
                        // One line for each episode: the next try probably fails, too.
                        if failures == 0 {
                            tracing::warn!("a control connection: {error}");
                        }
                        failures += 1;
                        let _interrupted = poll(&mut [], PollTimeout::from(ACCEPT_PAUSE_MS));
                    }
                }
            }
        })?;
    Ok(answered)
}

/// Waits for the answer to the request that `deliver` sends; `None`: it was dropped.
pub(crate) fn ask(deliver: impl FnOnce(Answer)) -> Option<ControlReply> {
    let (sender, receiver) = mpsc::sync_channel(1);
    deliver(Answer { sender });
    receiver.recv().ok()
}

/// The threads that serve connections.
struct Threads<D> {
    waiting: (Sender<UnixStream>, Receiver<UnixStream>),
    /// Connections that wait or are being served. Only a count, so Relaxed.
    connections: AtomicUsize,
    deliver: D,
    stopped: mpsc::Sender<()>,
}

impl<D: Fn(ControlRequest, Option<OwnedFd>, Answer) + Send + Sync + 'static> Threads<D> {
    fn start(deliver: D, stopped: mpsc::Sender<()>) -> std::io::Result<Arc<Self>> {
        let threads = Arc::new(Threads {
            waiting: unbounded(),
            connections: AtomicUsize::new(0),
            deliver,
            stopped,
        });
        for _ in 0..THREADS_KEPT {
            let shared = Arc::clone(&threads);
            // The channel's sender is here, too: it is never closed.
            thread().spawn(move || shared.waiting.1.iter().for_each(|it| shared.serve(it)))?;
        }
        Ok(threads)
    }

    /// Serves `stream` on a kept thread, or on a new one if all kept ones may be busy.
    fn add(self: &Arc<Self>, stream: UnixStream) {
        let others = self.connections.fetch_add(1, Ordering::Relaxed);
        // This receiver keeps the channel open.
        let _sent = self.waiting.0.send(stream);
        if others < THREADS_KEPT {
            return;
        }
        let shared = Arc::clone(self);
        let started =
            thread().spawn(move || shared.waiting.1.try_iter().for_each(|it| shared.serve(it)));
        if let Err(error) = started {
            tracing::warn!("a control request waits for a thread: {error}");
        }
    }

    fn serve(&self, stream: UnixStream) {
        one(stream, &self.deliver, &self.stopped);
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn thread() -> std::thread::Builder {
    std::thread::Builder::new().name("control-one".to_owned())
}

fn one(
    mut stream: UnixStream,
    deliver: &impl Fn(ControlRequest, Option<OwnedFd>, Answer),
    stopped: &mpsc::Sender<()>,
) {
    let Some((line, descriptor)) = read_line(&stream) else {
        return;
    };
    let stop = matches!(serde_json::from_slice(&line), Ok(ControlRequest::Stop));
    let reply = match serde_json::from_slice(&line) {
        Ok(request) => match ask(|answer| deliver(request, descriptor, answer)) {
            Some(reply) => reply,
            None => return,
        },
        Err(error) => ControlReply::Failed(Error::new(
            ErrorCode::Invalid,
            format!("a control request: {error}"),
        )),
    };
    let mut answer = serde_json::to_vec(&reply).expect("answers have string keys");
    answer.push(b'\n');
    let sent = stream
        .write_all(&answer)
        .and_then(|()| stream.shutdown(Shutdown::Both));
    if let Err(error) = sent {
        tracing::debug!("the client did not wait for the answer: {error}");
    }
    if stop {
        let _ending = stopped.send(());
    }
}

/// The bytes from a connection, with the descriptor that came with them.
struct Received<'a> {
    stream: &'a UnixStream,
    descriptor: Option<OwnedFd>,
}

impl Read for Received<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match receive_with_descriptors(self.stream, buffer) {
                Ok(None) => return Ok(0),
                Ok(Some((len, descriptors))) => {
                    self.descriptor = descriptors.into_iter().next().or(self.descriptor.take());
                    return Ok(len);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let mut readable = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
                    let _interrupted = poll(&mut readable, PollTimeout::NONE);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The request and its descriptor, unless its client has disconnected already.
fn read_line(stream: &UnixStream) -> Option<(Vec<u8>, Option<OwnedFd>)> {
    let mut line = Vec::new();
    let received = Received {
        stream,
        descriptor: None,
    };
    let mut reader = BufReader::new(received.take(LINE_LEN_MAX));
    let read = reader.read_until(b'\n', &mut line);
    let descriptor = reader.into_inner().into_inner().descriptor;
    if read.is_err() || line.last() != Some(&b'\n') {
        return None;
    }
    let mut descriptors = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let looked = poll(&mut descriptors, PollTimeout::ZERO);
    let disconnected = descriptors[0]
        .revents()
        .is_some_and(|events| events.contains(PollFlags::POLLHUP));
    (looked.is_ok() && !disconnected).then_some((line, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_answered_once_and_nonsense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let stopped = serve(
            UnixListener::bind(&path).unwrap(),
            |_request, _descriptor, answer: Answer| answer.send(ControlReply::Done),
        )
        .unwrap();
        let ask = |text: &str| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        assert_eq!(ask("{\"request\":\"status\"}\n"), "{\"answer\":\"done\"}\n");
        assert!(ask("{\"request\":\"explode\"}\n").contains("\"code\":\"invalid\""));
        assert!(stopped.try_recv().is_err());
        assert_eq!(ask("{\"request\":\"stop\"}\n"), "{\"answer\":\"done\"}\n");
        stopped.recv().unwrap();
    }
}
