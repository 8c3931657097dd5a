//! Snapshots of open volumes, as far as the volume peer is concerned.
//!
//! `SnapshotBegin` raises the epoch. Writes that had their place before its answer belong to the old epoch: they are
//! waited for (completed, and reported), then what they dirtied is synced, then `SnapshotCommit` is sent. Other requests
//! go on all the time, flush rounds too: only the sync itself takes the place of a round.
//!
//! One snapshot of a volume at a time; others wait in order.

use std::collections::VecDeque;

use archipelago_protocol::map::{MapOp, MapReply, MapRequest};
use archipelago_protocol::{Error, ErrorCode, Lineage, OnFull};
use xseg::ClientPort;

use crate::full::WaitsFor;
use crate::model::State;
use crate::peer::{Kind, VolumePeer};

/// Snapshots of one volume that may wait: far more than anybody starts at once.
const SNAPSHOTS_WAITING_MAX: usize = 64;

/// What the volume peer tells control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlEvent {
    /// A snapshot that was asked for is there, or is not.
    SnapshotDone {
        /// As given to [`VolumePeer::snapshot`].
        id: u64,
        /// Its token.
        token: u64,
        /// Success, or why not. [`ErrorCode::Unavailable`]: the mapper died, look whether the name is there.
        result: Result<(), Error>,
    },
    /// This volume waits: there is no room. Or it has waited for as long as its policy says.
    NoSpace {
        /// Which volume.
        lineage: Lineage,
        /// For what.
        waits_for: WaitsFor,
        /// For how long, by its policy.
        policy: OnFull,
    },
    /// It has another size than before its session began anew: [`VolumeEvent::Resized`] waits for its driver.
    ///
    /// [`VolumeEvent::Resized`]: archipelago_protocol::volume::VolumeEvent::Resized
    Resized {
        /// Which volume.
        lineage: Lineage,
    },
    /// There is room again for what it asks.
    SpaceFound {
        /// Which volume.
        lineage: Lineage,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begin,
    Beginning,
    /// Waits for the writes that were located in this phase.
    Draining(usize),
    Syncing,
    Commit,
    Committing,
    /// The commit failed: the mapper shall forget the snapshot, then control hears why.
    Abort(ErrorCode),
    Aborting(ErrorCode),
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    id: u64,
    token: u64,
}

/// The snapshots of a volume.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    current: Option<(Asked, Stage)>,
    waiting: VecDeque<Asked>,
}

impl Snapshots {
    pub(crate) fn is_idle(&self) -> bool {
        self.current.is_none() && self.waiting.is_empty()
    }

    pub(crate) fn has_work(&self, located: [u32; 2]) -> bool {
        match self.current {
            None => !self.waiting.is_empty(),
            Some((_, Stage::Begin | Stage::Commit | Stage::Abort(_))) => true,
            Some((_, Stage::Draining(phase))) => located[phase] == 0,
            Some(_) => false,
        }
    }

    /// Whether the old epoch's writes are done and its sync may start; it is started then.
    pub(crate) fn take_drained(&mut self, located: [u32; 2]) -> bool {
        match self.current {
            Some((asked, Stage::Draining(phase))) if located[phase] == 0 => {
                self.current = Some((asked, Stage::Syncing));
                true
            }
            _ => false,
        }
    }

    /// The sync is done.
    pub(crate) fn synced(&mut self) {
        if let Some((_, stage)) = &mut self.current {
            *stage = Stage::Commit;
        }
    }
}

impl<M: ClientPort, B: ClientPort> VolumePeer<M, B> {
    /// Makes the snapshot that the mapper prepared as `token`; [`ControlEvent::SnapshotDone`] with `id` follows.
    pub fn snapshot(&mut self, lineage: Lineage, token: u64, id: u64) {
        let asked = Asked { id, token };
        let open = |(_, volume): &(u32, &crate::model::Volume)| {
            volume.lineage == lineage
                && volume.mode == archipelago_protocol::volume::OpenMode::Exclusive
                && !volume.closing
                && !matches!(volume.state, State::Dead | State::Broken(_))
        };
        let Some(v) = self.volumes.iter().find(open).map(|(v, _)| v) else {
            return self.snapshot_done(asked, Err(ErrorCode::NotFound));
        };
        let waiting = &mut self.volumes[v].snapshots.waiting;
        if waiting.len() >= SNAPSHOTS_WAITING_MAX {
            let message = format!("{SNAPSHOTS_WAITING_MAX} snapshots of the volume are waiting");
            return self.control_events.push_back(ControlEvent::SnapshotDone {
                id,
                token,
                result: Err(Error::new(ErrorCode::InUse, message)
                    .with_hint("try again when some of them are made")),
            });
        }
        waiting.push_back(asked);
        self.make_ready(v);
    }

    /// The next event for control.
    pub fn next_control_event(&mut self) -> Option<ControlEvent> {
        self.control_events.pop_front()
    }

    fn snapshot_done(&mut self, asked: Asked, result: Result<(), ErrorCode>) {
        let Asked { id, token } = asked;
        let result = result.map_err(|code| match code {
            ErrorCode::NotFound => Error::new(
                code,
                "the volume is not open for writing here, or the token is unknown",
            ),
            ErrorCode::SyncFailed => {
                Error::new(code, "the volume's data could not be made durable")
            }
            ErrorCode::Unavailable => {
                Error::new(code, "the mapper died while the snapshot was made")
                    .with_hint("look whether the snapshot is there, and make it again if not")
            }
            _ => Error::new(code, format!("the snapshot was not made: {code}")),
        });
        self.control_events
            .push_back(ControlEvent::SnapshotDone { id, token, result });
    }

    /// Sends what the current snapshot calls for. Whether anything moved.
    pub(crate) fn advance_snapshot(&mut self, v: u32) -> bool {
        let volume = &mut self.volumes[v];
        let session = volume.session;
        let snapshots = &mut volume.snapshots;
        if snapshots.current.is_none() {
            snapshots.current = snapshots
                .waiting
                .pop_front()
                .map(|asked| (asked, Stage::Begin));
        }
        let Some((asked, stage)) = snapshots.current else {
            return false;
        };
        let (op, next) = match stage {
            Stage::Begin => (MapOp::SnapshotBegin, Stage::Beginning),
            Stage::Commit => (MapOp::SnapshotCommit, Stage::Committing),
            Stage::Abort(code) => (MapOp::SnapshotAbort, Stage::Aborting(code)),
            _ => return false,
        };
        let request = MapRequest {
            operand: [asked.token, 0],
            ..MapRequest::new(op, session)
        };
        let sent = self.send_map(v, Kind::Snapshot, v, request);
        if sent {
            self.volumes[v].snapshots.current = Some((asked, next));
        }
        sent
    }

    pub(crate) fn snapshot_reply(&mut self, v: u32, reply: MapReply) {
        let volume = &mut self.volumes[v];
        let Some((asked, stage)) = volume.snapshots.current else {
            return;
        };
        match (stage, reply.result) {
            (_, Err(ErrorCode::SyncFailed)) => self.fail_volume(v),
            (Stage::Beginning, Ok(_)) => {
                // From this answer on, places belong to the new epoch: count them apart. The other counter is zero,
                // because the snapshot before this one has waited for it.
                volume.snapshots.current = Some((asked, Stage::Draining(volume.phase)));
                volume.phase ^= 1;
            }
            (Stage::Committing, Err(code)) => {
                volume.snapshots.current = Some((asked, Stage::Abort(code)));
            }
            (stage, result) => {
                volume.snapshots.current = None;
                let result = if let Stage::Aborting(code) = stage {
                    Err(code)
                } else {
                    result.map(|_| ())
                };
                self.snapshot_done(asked, result);
            }
        }
    }

    /// The session ended under the snapshots of `v`: none of them will be.
    pub(crate) fn fail_snapshots(&mut self, v: u32, code: ErrorCode) {
        let snapshots = std::mem::take(&mut self.volumes[v].snapshots);
        for asked in snapshots
            .current
            .map(|(asked, _)| asked)
            .into_iter()
            .chain(snapshots.waiting)
        {
            self.snapshot_done(asked, Err(code));
        }
    }
}
