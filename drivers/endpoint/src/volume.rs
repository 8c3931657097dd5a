//! The volume of an endpoint: opened when its first client uses it (a ring runs, a connection transmits), closed when the last
//! one has stopped.
//!
//! | state | leaves it when |
//! |---|---|
//! | Closed | a client needs it: opens |
//! | Opening | `Opened`: Open, Refused, Full or Failed |
//! | Open | no client needs it and nothing is in flight: closes |
//! | Closing | `Closed`: Closed |
//! | Refused (no slot; requests wait) | a moment later: opens again; no client needs it: Closed |
//! | Full (no space for as long as the policy waits; requests fail) | as Refused |
//! | Failed (requests fail) | no client needs it: Closed, so the next use tries again |

use std::time::Duration;

use archipelago_protocol::volume::{
    OnFull, OpenMode, VolumeEvent, VolumeHandle, VolumeRequest, Volumes,
};
use archipelago_protocol::{Error, ErrorCode, Lineage, ServedVolume};
use tracing::{debug, error};

use crate::driver::Shortage;

/// Pause after an open that found no slot or no space.
const OPEN_AGAIN: Duration = Duration::from_millis(500);
/// How long an open is repeated while another session has the volume. The session of a client that has disconnected ends within this time,
/// and a client that comes right after it must not get an I/O error.
const SESSION_ENDS_WITHIN: Duration = Duration::from_secs(2);
/// Pause between two of these opens.
const IN_USE_AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VolumeState {
    Closed,
    Opening(VolumeHandle),
    Open(VolumeHandle),
    Closing(VolumeHandle),
    /// The volume peer had no slot for it, until then. For other lack of space in an open the peer itself waits ([`OnFull::Wait`]).
    Refused(Duration),
    /// The open has failed for lack of space: its policy does not wait, or its limit has passed. At this time it is tried again, without
    /// waiting, so that the volume is served when there is space.
    Full(Duration),
    Failed,
}

/// Whether clients wait for answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// There are clients.
    Served,
    /// There are none any more: requests in flight are dropped, and nothing waits for space.
    Dropped,
}

/// Why an endpoint's requests fail before they reach the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotServed {
    /// There was no space for as long as its policy waits.
    NoSpace,
    /// It could not be opened.
    NotOpen,
}

/// What happens to requests now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// They go to the volume.
    Open(VolumeHandle),
    /// They fail with this.
    Fails(NotServed),
    /// They wait where they are.
    NotYet,
}

/// A report of the volume peer, after the state was updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// A piece of a request is done.
    Done {
        /// The cookie with which it was submitted.
        cookie: u64,
        /// Success, or the error.
        result: Result<(), ErrorCode>,
    },
    /// The volume has so many bytes.
    Size(u64),
    /// An open has failed.
    OpenFailed,
    /// It is closed.
    Closed,
}

/// The volume that an endpoint serves, and the volume peer.
#[derive(Debug)]
pub struct EndpointVolume<V> {
    peer: V,
    lineage: Lineage,
    mode: OpenMode,
    on_full: OnFull,
    state: VolumeState,
    /// The shortage of the last open, which was logged.
    shortage: Option<Shortage>,
    /// When the first open was tried since the last success, or since the volume was needed.
    open_since: Option<Duration>,
}

impl<V: Volumes> EndpointVolume<V> {
    /// `volume`, closed.
    #[must_use]
    pub fn new(peer: V, volume: &ServedVolume) -> Self {
        EndpointVolume {
            peer,
            lineage: volume.lineage,
            mode: match volume.read_only {
                true => OpenMode::ReadOnly,
                false => OpenMode::Exclusive,
            },
            on_full: volume.on_full,
            state: VolumeState::Closed,
            shortage: None,
            open_since: None,
        }
    }

    /// The volume peer, for regions of memory.
    pub fn peer(&mut self) -> &mut V {
        &mut self.peer
    }

    /// As [`EndpointVolume::peer`], to look.
    #[must_use]
    pub fn peer_ref(&self) -> &V {
        &self.peer
    }

    /// What happens to requests now.
    #[must_use]
    pub fn service(&self) -> Service {
        match self.state {
            VolumeState::Open(handle) => Service::Open(handle),
            VolumeState::Full(_) => Service::Fails(NotServed::NoSpace),
            VolumeState::Failed => Service::Fails(NotServed::NotOpen),
            _ => Service::NotYet,
        }
    }

    /// Whether it is closed, and no open of it is under way.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state == VolumeState::Closed
    }

    /// Whether an open or a close is under way.
    #[must_use]
    pub fn changes(&self) -> bool {
        matches!(
            self.state,
            VolumeState::Opening(_) | VolumeState::Closing(_)
        )
    }

    /// When the next open is to be tried.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        match self.state {
            VolumeState::Refused(again) | VolumeState::Full(again) => Some(again),
            _ => None,
        }
    }

    /// Why the volume cannot be opened, and since when.
    #[must_use]
    pub fn shortage(&self) -> Option<(Shortage, Duration)> {
        self.shortage.zip(self.open_since)
    }

    /// Passes a request to the volume behind `handle`.
    ///
    /// # Errors
    /// As [`Volumes::submit`].
    pub fn submit(
        &mut self,
        handle: VolumeHandle,
        cookie: u64,
        request: VolumeRequest<'_>,
    ) -> Result<(), ErrorCode> {
        self.peer.submit(handle, cookie, request)
    }

    /// The next report of the volume peer.
    pub fn next_report(
        &mut self,
        clients: Clients,
        now: impl FnOnce() -> Duration,
    ) -> Option<Report> {
        let (VolumeState::Opening(handle)
        | VolumeState::Open(handle)
        | VolumeState::Closing(handle)) = self.state
        else {
            return None;
        };
        Some(match self.peer.next_event(handle)? {
            VolumeEvent::Done { cookie, result } => Report::Done { cookie, result },
            VolumeEvent::Resized { size } => Report::Size(size),
            VolumeEvent::Opened { result: Ok(volume) } => {
                // Clients may open it as often as they like: a guest with each reset of its device.
                debug!(volume = %volume.lineage, size = volume.size, "volume opened");
                (self.shortage, self.open_since) = (None, None);
                // It may have been opened with a policy that does not wait.
                if clients == Clients::Served {
                    self.peer.on_full(handle, self.on_full);
                }
                self.state = VolumeState::Open(handle);
                Report::Size(volume.size)
            }
            VolumeEvent::Opened { result: Err(error) } => {
                self.open_failed(&error, now());
                Report::OpenFailed
            }
            VolumeEvent::Closed { result } => {
                if let Err(error) = result {
                    error!(volume = %self.lineage, %error, "closing the volume failed");
                }
                self.state = VolumeState::Closed;
                Report::Closed
            }
        })
    }

    fn open_failed(&mut self, error: &Error, now: Duration) {
        let (volume, policy) = (self.lineage, self.on_full);
        let again = now + OPEN_AGAIN;
        let tried = now.saturating_sub(self.open_since.unwrap_or(now));
        self.state = if error.code == ErrorCode::InUse && tried < SESSION_ENDS_WITHIN {
            debug!(%volume, %error, "the volume cannot be opened yet");
            VolumeState::Refused(now + IN_USE_AGAIN)
        } else if !error.code.passes() {
            error!(%volume, %error, "the volume cannot be opened; its clients get I/O errors");
            VolumeState::Failed
        } else if self.has_waited(now) {
            if self.shortage.replace(Shortage::Reported) != Some(Shortage::Reported) {
                error!(%volume, %error, "the volume cannot be opened; its clients get I/O errors until there is space (on full: {policy})");
            }
            VolumeState::Full(again)
        } else {
            if self.shortage.replace(Shortage::Waits) != Some(Shortage::Waits) {
                error!(%volume, %error, "the volume cannot be opened yet; its clients wait (on full: {policy})");
            }
            VolumeState::Refused(again)
        };
    }

    /// Whether an open has been tried for as long as the policy waits.
    fn has_waited(&self, now: Duration) -> bool {
        let waited = now.saturating_sub(self.open_since.unwrap_or_default());
        self.on_full.limit().is_some_and(|limit| waited >= limit)
    }

    /// Opens and closes the volume: `wanted` by a client, or `idle`, with no client and nothing in flight.
    pub fn settle(&mut self, wanted: bool, idle: bool, now: impl Fn() -> Duration) -> bool {
        match self.state {
            VolumeState::Closed if wanted => {
                let now = now();
                self.open_since = self.open_since.or(Some(now));
                let policy = if self.has_waited(now) {
                    OnFull::Report
                } else {
                    self.on_full
                };
                let handle = self.peer.open(self.lineage, self.mode);
                self.peer.on_full(handle, policy);
                self.state = VolumeState::Opening(handle);
            }
            VolumeState::Open(handle) if idle => {
                self.peer.close(handle);
                self.state = VolumeState::Closing(handle);
            }
            VolumeState::Failed | VolumeState::Refused(_) | VolumeState::Full(_) if idle => {
                (self.state, self.open_since) = (VolumeState::Closed, None);
            }
            VolumeState::Refused(again) | VolumeState::Full(again) if again <= now() => {
                self.state = VolumeState::Closed;
            }
            _ => return false,
        }
        true
    }

    /// Sets another policy for a full pool.
    pub fn set_on_full(&mut self, policy: OnFull, clients: Clients) {
        if std::mem::replace(&mut self.on_full, policy) == policy {
            return;
        }
        match self.state {
            // Dropped requests do not wait any more.
            VolumeState::Opening(handle) | VolumeState::Open(handle)
                if clients == Clients::Served =>
            {
                self.peer.on_full(handle, policy);
            }
            // The open is tried again, with the volume's policy.
            VolumeState::Refused(_) | VolumeState::Full(_) => {
                (self.state, self.open_since) = (VolumeState::Closed, None);
            }
            _ => {}
        }
    }

    /// Has every request answered that waits for space: their clients have disconnected, and the memory that they name will be removed.
    pub fn stop_waiting(&mut self) {
        if let VolumeState::Open(handle) | VolumeState::Opening(handle) = self.state {
            self.peer.on_full(handle, OnFull::Report);
        }
    }

    /// Ends [`EndpointVolume::stop_waiting`]: there are clients again.
    pub fn wait_again(&mut self) {
        if let VolumeState::Open(handle) | VolumeState::Opening(handle) = self.state {
            self.peer.on_full(handle, self.on_full);
        }
    }

    /// Cancels an open that waits for space; the next need tries it again. `false`: none is under way.
    pub fn stop_opening(&mut self) -> bool {
        let opening = matches!(self.state, VolumeState::Opening(_));
        if opening {
            self.stop_waiting();
        }
        opening
    }

    /// Has the open volume give back the requests that wait for space.
    pub fn recall(&mut self) {
        if let VolumeState::Open(handle) = self.state {
            self.peer.recall(handle);
        }
    }
}
