//! Snapshots of an open volume: the part of the volume peer.
//!
//! `SnapshotBegin` raises the epoch. Writes that got their place before its answer belong to the old epoch. The snapshot waits until they
//! are completed and reported; then the objects that they dirtied are synced; then `SnapshotCommit` is sent. Other requests continue all
//! the time, and so do flush rounds: only the sync itself takes the place of a round.
//!
//! | stage | sends | continues when | to |
//! |---|---|---|---|
//! | Begin | `SnapshotBegin` | answered | Draining |
//! | Draining | | all writes of the old epoch are done, and no round runs | Syncing |
//! | Syncing | (the flush side syncs) | all is synced | Commit |
//! | Commit | `SnapshotCommit` | answered | the end, or Abort |
//! | Abort | `SnapshotAbort` | answered | the end, with the commit's error |
//!
//! One snapshot of a volume is made at a time; others wait in order.

use std::collections::VecDeque;

use archipelago_protocol::map::{MapOp, MapRequest};
use archipelago_protocol::{Error, ErrorCode};

use crate::call::Call;
use crate::control_event::ControlEvent;
use crate::epoch_writes::{EpochWrites, WritePhase};

/// Snapshots of one volume that may wait: far more than anyone starts at once.
const SNAPSHOTS_WAITING_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begin(Call),
    /// Waits for the writes of this phase.
    Draining(WritePhase),
    Syncing,
    Commit(Call),
    /// The commit failed: the mapper must drop the snapshot, then control gets the error.
    Abort(ErrorCode, Call),
}

/// A snapshot that control has requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SnapshotRequest {
    /// Identifies it at control.
    pub(crate) id: u64,
    /// Identifies it at the mapper.
    pub(crate) token: u64,
}

impl SnapshotRequest {
    /// The report of its result to control.
    pub(crate) fn done(self, result: Result<(), ErrorCode>) -> ControlEvent {
        let result = result.map_err(|code| match code {
            ErrorCode::NotFound => Error::new(
                code,
                "the volume is not open for writing here, or the token is unknown",
            ),
            ErrorCode::SyncFailed => {
                Error::new(code, "the volume's data could not be made durable")
            }
            ErrorCode::Unavailable => {
                Error::new(code, "the mapper died while the snapshot was made").with_hint(
                    "check whether the snapshot exists (`volume info`); if not, repeat the command",
                )
            }
            ErrorCode::InUse => {
                let message =
                    format!("{SNAPSHOTS_WAITING_MAX} snapshots of the volume are waiting");
                Error::new(code, message).with_hint("try again when some of them are made")
            }
            _ => Error::new(code, format!("the snapshot was not made: {code}")),
        });
        let SnapshotRequest { id, token } = self;
        ControlEvent::SnapshotDone { id, token, result }
    }
}

/// The meaning of an answer of the mapper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum SnapshotEvent {
    /// The snapshot continues, or waits.
    Continues,
    /// The snapshot was made, or failed.
    Done(SnapshotRequest, Result<(), ErrorCode>),
    /// A sync of the mapper failed.
    SyncFailed,
}

/// The snapshots of a volume.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    current: Option<(SnapshotRequest, Stage)>,
    waiting: VecDeque<SnapshotRequest>,
    /// Acknowledged writes were lost and no snapshot has reported it: the next one would lack these writes.
    unreported_loss: bool,
}

impl Snapshots {
    /// Adds a snapshot to the waiting ones.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`]: too many snapshots wait.
    pub(crate) fn add(&mut self, asked: SnapshotRequest) -> Result<(), ErrorCode> {
        if self.waiting.len() >= SNAPSHOTS_WAITING_MAX {
            return Err(ErrorCode::InUse);
        }
        self.waiting.push_back(asked);
        Ok(())
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.current.is_none() && self.waiting.is_empty()
    }

    /// Whether there is something to send or to sync.
    pub(crate) fn has_work(&self, writes: &EpochWrites) -> bool {
        match self.current {
            None => !self.waiting.is_empty(),
            Some((_, Stage::Begin(call) | Stage::Commit(call) | Stage::Abort(_, call))) => {
                call == Call::Due
            }
            Some((_, Stage::Draining(phase))) => writes.is_drained(phase),
            Some((_, Stage::Syncing)) => false,
        }
    }

    /// Whether the writes of the old epoch are done, so that the sync can start. The caller must then start it.
    pub(crate) fn take_drained(&mut self, writes: &EpochWrites) -> bool {
        match &mut self.current {
            Some((_, stage)) => match *stage {
                Stage::Draining(phase) if writes.is_drained(phase) => {
                    *stage = Stage::Syncing;
                    true
                }
                _ => false,
            },
            None => false,
        }
    }

    /// The sync is done.
    pub(crate) fn synced(&mut self) {
        if let Some((_, stage)) = &mut self.current {
            *stage = Stage::Commit(Call::Due);
        }
    }

    /// The next request to send, on `session`.
    pub(crate) fn next_request(&mut self, session: u32) -> Option<MapRequest> {
        if self.current.is_none() {
            let next = self.waiting.pop_front();
            self.current = next.map(|asked| (asked, Stage::Begin(Call::Due)));
        }
        let (asked, stage) = self.current?;
        let op = match stage {
            Stage::Begin(Call::Due) => MapOp::SnapshotBegin,
            Stage::Commit(Call::Due) => MapOp::SnapshotCommit,
            Stage::Abort(_, Call::Due) => MapOp::SnapshotAbort,
            _ => return None,
        };
        Some(MapRequest {
            operand: [asked.token, 0],
            ..MapRequest::new(op, session)
        })
    }

    /// The request that [`Snapshots::next_request`] returned was sent.
    pub(crate) fn sent(&mut self) {
        let stage = self.current.as_mut().map(|(_, stage)| stage);
        if let Some(Stage::Begin(call) | Stage::Commit(call) | Stage::Abort(_, call)) = stage {
            *call = Call::Sent;
        }
    }

    /// Handles the mapper's answer.
    pub(crate) fn reply(
        &mut self,
        result: Result<u32, ErrorCode>,
        writes: &mut EpochWrites,
    ) -> SnapshotEvent {
        let Some((asked, stage)) = &mut self.current else {
            return SnapshotEvent::Continues;
        };
        let result = match (*stage, result) {
            (_, Err(ErrorCode::SyncFailed)) => return SnapshotEvent::SyncFailed,
            (Stage::Begin(_), Ok(_)) => {
                // From this answer on, new places belong to the new epoch.
                *stage = Stage::Draining(writes.next_epoch());
                return SnapshotEvent::Continues;
            }
            (Stage::Commit(_), Err(code)) => {
                *stage = Stage::Abort(code, Call::Due);
                return SnapshotEvent::Continues;
            }
            (Stage::Abort(code, _), _) => Err(code),
            (_, result) => result.map(|_| ()),
        };
        let asked = *asked;
        self.current = None;
        SnapshotEvent::Done(asked, result)
    }

    /// The session ended before the snapshots were made: none of them will be made.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = SnapshotRequest> + use<> {
        let current = self.current.take().map(|(asked, _)| asked);
        let waiting = std::mem::take(&mut self.waiting);
        current.into_iter().chain(waiting)
    }

    /// Acknowledged writes were lost; all snapshots have been taken out and will report it.
    pub(crate) fn note_loss(&mut self, taken: usize) {
        self.unreported_loss = taken == 0;
    }

    /// Whether the next snapshot must report a loss. Resets it.
    pub(crate) fn take_unreported_loss(&mut self) -> bool {
        std::mem::take(&mut self.unreported_loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_waits_for_the_writes_of_its_epoch_and_for_no_other() {
        let (mut snapshots, mut writes) = (Snapshots::default(), EpochWrites::default());
        let asked = SnapshotRequest { id: 1, token: 2 };
        snapshots.add(asked).unwrap();
        let old = writes.begin();
        let op = |snapshots: &mut Snapshots| {
            let request = snapshots.next_request(3);
            snapshots.sent();
            request.map(|request| request.op)
        };
        assert_eq!(op(&mut snapshots), Some(MapOp::SnapshotBegin));
        assert_eq!(
            snapshots.reply(Ok(0), &mut writes),
            SnapshotEvent::Continues
        );
        let new = writes.begin();
        assert!(!snapshots.take_drained(&writes) && !snapshots.has_work(&writes));
        writes.end(old);
        assert!(snapshots.has_work(&writes) && snapshots.take_drained(&writes));
        assert_eq!(op(&mut snapshots), None);
        snapshots.synced();
        assert_eq!(op(&mut snapshots), Some(MapOp::SnapshotCommit));
        let refused = Err(ErrorCode::NoSpace);
        assert_eq!(
            snapshots.reply(refused, &mut writes),
            SnapshotEvent::Continues
        );
        assert_eq!(op(&mut snapshots), Some(MapOp::SnapshotAbort));
        let end = snapshots.reply(Ok(0), &mut writes);
        assert_eq!(end, SnapshotEvent::Done(asked, Err(ErrorCode::NoSpace)));
        writes.end(new);
        assert!(snapshots.is_idle());
    }
}
