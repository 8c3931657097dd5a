//! The volume of a device: opened when its first ring runs, closed when the last one has stopped.
//!
//! | state | leaves it when |
//! |---|---|
//! | Closed | a ring runs: opens |
//! | Opening | `Opened`: Open, Refused, Full or Failed |
//! | Open | no ring is started and nothing is in flight: closes |
//! | Closing | `Closed`: Closed |
//! | Refused (no slot; requests wait) | a moment later: opens again; no ring is started: Closed |
//! | Full (no room for as long as the policy waits; requests get IOERR) | as Refused |
//! | Failed (requests get IOERR) | no ring is started: Closed, so the next start tries again |

use std::time::Duration;

use archipelago_endpoint::{ServedVolume, Shortage};
use archipelago_protocol::volume::{
    OnFull, OpenMode, VolumeEvent, VolumeHandle, VolumeRequest, Volumes,
};
use archipelago_protocol::{Error, ErrorCode, Lineage};
use tracing::{debug, error};

use super::negotiated::FrontEnd;
use crate::failure::Failure;

/// How long after an open that found no slot or no room the next one is tried.
const OPEN_AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VolumeState {
    Closed,
    Opening(VolumeHandle),
    Open(VolumeHandle),
    Closing(VolumeHandle),
    /// The volume peer had no slot for it; what else an open has no space for, the peer waits for itself ([`OnFull::Wait`]).
    /// Until then it is not asked for again.
    Refused(Duration),
    /// It could not be opened for want of space for as long as its policy waits, or would not wait for it. Opened again then,
    /// without waiting: whoever reports serves again when there is room.
    Full(Duration),
    Failed,
}

/// What requests get now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    /// The volume.
    Open(VolumeHandle),
    /// This failure.
    Fails(Failure),
    /// Nothing: they stay in their rings.
    NotYet,
}

/// What the volume peer has reported, once the state has followed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Report {
    /// A piece of a request is done.
    Done {
        cookie: u64,
        result: Result<(), ErrorCode>,
    },
    /// The volume has so many bytes.
    Size(u64),
    /// An open has failed.
    OpenFailed,
    /// It is closed.
    Closed,
}

/// The volume that a device serves, and the volume peer.
#[derive(Debug)]
pub(super) struct DeviceVolume<V> {
    peer: V,
    lineage: Lineage,
    mode: OpenMode,
    on_full: OnFull,
    state: VolumeState,
    /// What the last open found too little for, and was logged.
    shortage: Option<Shortage>,
    /// When an open was tried first, since one succeeded or no ring was started.
    open_since: Option<Duration>,
}

impl<V: Volumes> DeviceVolume<V> {
    pub(super) fn new(peer: V, volume: &ServedVolume) -> Self {
        DeviceVolume {
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

    /// The volume peer, for the regions of guest memory.
    pub(super) fn peer(&mut self) -> &mut V {
        &mut self.peer
    }

    /// What requests get now.
    pub(super) fn service(&self) -> Service {
        match self.state {
            VolumeState::Open(handle) => Service::Open(handle),
            VolumeState::Full(_) => Service::Fails(Failure::Volume(ErrorCode::NoSpace)),
            VolumeState::Failed => Service::Fails(Failure::NotOpen),
            _ => Service::NotYet,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state == VolumeState::Closed
    }

    /// Whether an open or a close is under way.
    pub(super) fn changes(&self) -> bool {
        matches!(
            self.state,
            VolumeState::Opening(_) | VolumeState::Closing(_)
        )
    }

    /// When the next open is to be tried.
    pub(super) fn due(&self) -> Option<Duration> {
        match self.state {
            VolumeState::Refused(again) | VolumeState::Full(again) => Some(again),
            _ => None,
        }
    }

    /// Why the volume cannot be opened, and since when.
    pub(super) fn shortage(&self) -> Option<(Shortage, Duration)> {
        self.shortage.zip(self.open_since)
    }

    /// Gives a request to the volume behind `handle`.
    pub(super) fn submit(
        &mut self,
        handle: VolumeHandle,
        cookie: u64,
        request: VolumeRequest<'_>,
    ) -> Result<(), ErrorCode> {
        self.peer.submit(handle, cookie, request)
    }

    /// The next report of the volume peer.
    pub(super) fn next_report(
        &mut self,
        front_end: FrontEnd,
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
                // A guest opens its volume as often as it resets its device.
                debug!(volume = %volume.lineage, size = volume.size, "volume opened");
                (self.shortage, self.open_since) = (None, None);
                // It may have been opened without waiting.
                if front_end == FrontEnd::Served {
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
        self.state = if !error.code.passes() {
            error!(%volume, %error, "the volume cannot be opened; its guest gets I/O errors");
            VolumeState::Failed
        } else if self.has_waited(now) {
            if self.shortage.replace(Shortage::Reported) != Some(Shortage::Reported) {
                error!(%volume, %error, "the volume cannot be opened; its guest gets I/O errors until there is space (on full: {policy})");
            }
            VolumeState::Full(again)
        } else {
            if self.shortage.replace(Shortage::Waits) != Some(Shortage::Waits) {
                error!(%volume, %error, "the volume cannot be opened yet; its guest waits (on full: {policy})");
            }
            VolumeState::Refused(again)
        };
    }

    /// Whether an open has been tried for as long as the policy waits.
    fn has_waited(&self, now: Duration) -> bool {
        let waited = now.saturating_sub(self.open_since.unwrap_or_default());
        self.on_full.limit().is_some_and(|limit| waited >= limit)
    }

    /// Opens and closes the volume: `wanted` by a ring, or `idle`, with no ring started and nothing in flight.
    pub(super) fn settle(&mut self, wanted: bool, idle: bool, now: impl Fn() -> Duration) -> bool {
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

    /// Another policy for a full pool.
    pub(super) fn set_on_full(&mut self, policy: OnFull, front_end: FrontEnd) {
        if std::mem::replace(&mut self.on_full, policy) == policy {
            return;
        }
        match self.state {
            // Who drops its requests waits for nothing any more.
            VolumeState::Opening(handle) | VolumeState::Open(handle)
                if front_end == FrontEnd::Served =>
            {
                self.peer.on_full(handle, policy);
            }
            // Tried anew, as the policy says.
            VolumeState::Refused(_) | VolumeState::Full(_) => {
                (self.state, self.open_since) = (VolumeState::Closed, None);
            }
            _ => {}
        }
    }

    /// Has everything answered that waits for room: nobody waits with it any more, and the memory that it names is about to go.
    pub(super) fn stop_waiting(&mut self) {
        if let VolumeState::Open(handle) | VolumeState::Opening(handle) = self.state {
            self.peer.on_full(handle, OnFull::Report);
        }
    }

    /// Has an open that waits for room refused; it is tried again when a ring runs. `false`: none is under way.
    pub(super) fn stop_opening(&mut self) -> bool {
        let opening = matches!(self.state, VolumeState::Opening(_));
        if opening {
            self.stop_waiting();
        }
        opening
    }

    /// Has the open volume give back what waits for room.
    pub(super) fn recall(&mut self) {
        if let VolumeState::Open(handle) = self.state {
            self.peer.recall(handle);
        }
    }
}
