//! The thread beside an attached volume: serves the connections of front ends, one after the other.
//!
//! Invariant: whatever a front end sends, or leaves half sent, delays this thread only.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use archipelago_runtime::{Clock, SystemClock};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{debug, info, warn};
use vhost::vhost_user::{BackendReqHandler, Error};

use crate::back_channel::{BackChannel, peek};
use crate::command::{Command, CommandChannel};
use crate::config::AttachConfig;
use crate::handler::Handler;
use crate::ring_check::RingCheck;
use crate::shared::Shared;
use crate::stop::Stop;
use crate::throttle::Allowance;

/// Requests whose failure cannot be reported as an answer: GET_FEATURES, SET_LOG_BASE, GET_VRING_BASE, GET_INFLIGHT_FD. Then the connection
/// is ended.
const UNANSWERED: [u32; 4] = [1, 6, 11, 31];

/// First and longest pause between two tries to accept a front end for which there is no descriptor.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(100);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// A front end's connection, with a descriptor for each use.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// To wait for messages.
    ours: UnixStream,
    /// To end the connection.
    own: UnixStream,
}

impl Connection {
    /// The connection of the next front end; if an `accepted` one cannot be copied, it is kept for the next try.
    fn take(
        listener: &UnixListener,
        accepted: &mut Option<UnixStream>,
    ) -> std::io::Result<Connection> {
        let stream = match accepted.take() {
            Some(stream) => stream,
            None => listener.accept()?.0,
        };
        match (stream.try_clone(), stream.try_clone()) {
            (Ok(ours), Ok(own)) => Ok(Connection { stream, ours, own }),
            (Err(error), _) | (_, Err(error)) => {
                *accepted = Some(stream);
                Err(error)
            }
        }
    }
}

/// One attached volume's connections.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) config: AttachConfig,
    pub(crate) shared: Arc<Shared>,
    pub(crate) device: CommandChannel,
    pub(crate) stop: Arc<Stop>,
    /// Signalled when the configuration space has changed.
    pub(crate) notice: File,
    pub(crate) allowance: Arc<Allowance>,
}

impl Session {
    /// Serves front ends until the thread shall stop.
    pub(crate) fn run(&self, listener: &UnixListener) {
        while !self.stop.is_wanted() {
            let mut fds = [
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.stop.doorbell().as_fd(), PollFlags::POLLIN),
            ];
            if poll(&mut fds, PollTimeout::NONE).is_err() || self.stop.is_wanted() {
                continue;
            }
            if let Some(connection) = self.accept(listener) {
                self.serve(connection);
            }
        }
    }

    /// Accepts the waiting front end. Without descriptors for it, tries again at growing intervals: nothing is lost meanwhile, and one line
    /// is logged. `None`: the front end has disconnected, or the thread shall stop.
    fn accept(&self, listener: &UnixListener) -> Option<Connection> {
        let mut pause = ACCEPT_PAUSE_MIN;
        let mut accepted = None;
        while !self.stop.is_wanted() {
            let error = match Connection::take(listener, &mut accepted) {
                Ok(connection) => return Some(connection),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => return None,
                Err(error) => error,
            };
            if pause == ACCEPT_PAUSE_MIN {
                let socket = self.config.socket.display();
                warn!(%socket, %error, "a front end cannot be accepted yet, tried again until it can");
            }
            self.stop.wait(pause);
            pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
        }
        None
    }

    fn serve(&self, connection: Connection) {
        let Connection { stream, ours, own } = connection;
        let socket = self.config.socket.display();
        info!(%socket, "front end connected");
        self.stop.set(Some(own));
        self.stop.wait(self.allowance.start());
        if self.stop.is_wanted() || self.device.call(Command::Connected).is_none() {
            self.stop.set(None);
            return;
        }
        let handler = Arc::new(Mutex::new(Handler {
            config: self.config.clone(),
            shared: Arc::clone(&self.shared),
            device: self.device.clone(),
            refused: false,
            allowance: Arc::clone(&self.allowance),
            stop: Arc::clone(&self.stop),
            started: true,
            check: RingCheck::new(),
            warned: false,
        }));
        let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(&handler));
        let mut back_channel = BackChannel::default();
        while self.wait(&ours, &back_channel, &handler)
            && self.message(&ours, &mut requests, &handler, &mut back_channel)
        {}
        // Requests in flight end, memory is unmapped and the volume is closed before the next front end is accepted.
        if self.device.call(Command::Disconnected).is_none() {
            debug!(%socket, "the device has ended before its front end");
        }
        self.shared.set_problem(None);
        self.stop.set(None);
        info!(%socket, "front end disconnected");
    }

    /// Waits for a message; meanwhile passes on notices of changes, and checks the rings. `false`: the thread shall stop.
    fn wait(
        &self,
        stream: &UnixStream,
        back_channel: &BackChannel,
        handler: &Mutex<Handler>,
    ) -> bool {
        loop {
            let due = {
                let mut handler = handler.lock().unwrap_or_else(PoisonError::into_inner);
                handler.check_rings();
                handler.check.due()
            };
            if self.stop.is_wanted() {
                return false;
            }
            let mut fds = [
                PollFd::new(stream.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.notice.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.stop.doorbell().as_fd(), PollFlags::POLLIN),
            ];
            if poll(&mut fds, until(due)).is_err() {
                continue;
            }
            let [message, notice, _stop] = fds.map(|fd| fd.any().unwrap_or(true));
            if notice {
                clear(&self.notice);
                back_channel.config_changed();
            }
            if message {
                return true;
            }
        }
    }

    /// Handles one message. `false`: disconnect.
    fn message(
        &self,
        stream: &UnixStream,
        requests: &mut BackendReqHandler<Mutex<Handler>>,
        handler: &Mutex<Handler>,
        back_channel: &mut BackChannel,
    ) -> bool {
        let Some(header) = peek(stream) else {
            return false;
        };
        match back_channel.take(stream, header) {
            Ok(true) => return true,
            Ok(false) => {}
            Err(error) => {
                warn!(%error, "disconnecting the front end");
                return false;
            }
        }
        let Err(error) = requests.handle_request() else {
            return true;
        };
        let refused = {
            let mut handler = handler.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut handler.refused)
        };
        // The connection stays usable only after a refusal that the front end got as its answer.
        if refused && header.needs_reply() && !UNANSWERED.contains(&header.request) {
            return true;
        }
        if !matches!(error, Error::Disconnected) {
            warn!(request = header.request, %error, "disconnecting the front end");
        }
        false
    }
}

/// The time to wait until `due`, in whole milliseconds, rounded up.
fn until(due: Option<Duration>) -> PollTimeout {
    let Some(due) = due else {
        return PollTimeout::NONE;
    };
    let left = due.saturating_sub(SystemClock.now()) + Duration::from_nanos(999_999);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

fn clear(eventfd: &File) {
    use std::io::Read;
    let mut eventfd = eventfd;
    let mut count = [0; 8];
    // Non-blocking: another reader may have taken the count.
    let _taken_already = eventfd.read(&mut count);
}
