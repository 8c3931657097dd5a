//! A volume's session with the mapper, as one state machine.
//!
//! | state | sends, once | the answer leads to |
//! |---|---|---|
//! | Opening | `Open`; with [`FLAG_DROP`] after a loss | Serving; Opening again; Waiting; Broken (a reopen), Dead (a first open) |
//! | Waiting | | |
//! | Serving | | |
//! | Failing | | |
//! | Abandoning | `Abandon` | Opening after a loss; Dead if the driver has closed |
//! | Closing | `Close` | Dead; Abandoning if it failed |
//! | Broken | | |
//! | Dead | | |
//!
//! | from | to | when |
//! |---|---|---|
//! | Waiting | Opening | the next turn of a full pool, or the driver gives up |
//! | Serving | Failing | a sync failed |
//! | Opening again, Serving, Closing | Failing | the mapper died, and had reported a failed sync |
//! | Serving | Closing | the driver closes, all is answered and clean |
//! | Serving | Abandoning | the flush of a close failed |
//! | Failing | Abandoning | nothing of the volume is in flight |
//! | Opening, Waiting, Serving, Failing, Abandoning, Closing | Opening | the mapper died; Dead instead if the driver has closed the volume and data is lost |
//! | Broken | Dead | the driver closes |
//!
//! A Dead volume exists until its driver has collected the last event.

use archipelago_protocol::map::{FLAG_DROP, MapOp, MapReply, MapRequest};
use archipelago_protocol::volume::OpenMode;
use archipelago_protocol::{Error, ErrorCode, Lineage, ObjectSize};

use crate::call::Call;

/// Why the volume is being opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The driver opens it.
    First,
    /// The mapper died.
    Again,
    /// A sync failed: writes that are not durable are to be dropped.
    AfterLoss,
    /// The same, and the previous attempt also reported a failed sync.
    AfterSecondLoss,
}

/// The state of the volume at the mapper.
#[derive(Debug)]
pub(crate) enum Session {
    /// Asks the mapper for a session; requests wait.
    Opening { attempt: Attempt, call: Call },
    /// The mapper had no room for a session; requests wait.
    Waiting { attempt: Attempt },
    /// Has a session.
    Serving { id: u32 },
    /// A sync failed: waits until nothing is in flight. Then requests submitted before number `limit` fail.
    Failing { id: u32, limit: u64 },
    /// Drops writes that are not durable. `lost`: the error of the driver's close.
    Abandoning {
        id: u32,
        call: Call,
        lost: Option<Error>,
    },
    /// Ends the session. `lost`: the error of the driver's close, also if the session ends without error.
    Closing {
        id: u32,
        call: Call,
        lost: Option<Error>,
    },
    /// The volume could not be opened again: requests fail with this code.
    Broken(ErrorCode),
    /// Exists until its last event is collected.
    Dead,
}

/// The meaning of an answer of the mapper.
#[derive(Debug)]
#[must_use]
pub(crate) enum SessionEvent {
    /// Nothing: the request is to be sent again, or the answer has no receiver.
    Nothing,
    /// The session has begun.
    Opened {
        first: bool,
        size: u64,
        object_size: ObjectSize,
        /// Completed writes are durable.
        durable: bool,
    },
    /// The open was refused.
    OpenRefused(ErrorCode),
    /// The first attempt to open again reported a failed sync: writes that are not durable are lost, and the volume is opened once more.
    LostAtReopen,
    /// The session has ended.
    Ended { lost: Option<Error> },
}

/// The error of a volume's open or close.
pub(crate) fn session_error(lineage: Lineage, what: &str, code: ErrorCode) -> Error {
    Error::new(code, format!("volume {lineage} {what}: {code}"))
}

impl Session {
    /// The first state of a volume that a driver opens.
    pub(crate) fn first() -> Self {
        Session::opening(Attempt::First)
    }

    /// The state of a volume that is to be opened.
    pub(crate) fn opening(attempt: Attempt) -> Self {
        Session::Opening {
            attempt,
            call: Call::Due,
        }
    }

    /// The request of this state, if it has not been sent.
    pub(crate) fn next_request(&self, lineage: Lineage, mode: OpenMode) -> Option<MapRequest> {
        match self {
            Session::Opening {
                attempt,
                call: Call::Due,
            } => {
                let mut request = MapRequest::open(lineage, mode == OpenMode::Exclusive);
                if matches!(attempt, Attempt::AfterLoss | Attempt::AfterSecondLoss) {
                    request.flags |= FLAG_DROP;
                }
                Some(request)
            }
            Session::Abandoning {
                id,
                call: Call::Due,
                ..
            } => Some(MapRequest::new(MapOp::Abandon, *id)),
            Session::Closing {
                id,
                call: Call::Due,
                ..
            } => Some(MapRequest::new(MapOp::Close, *id)),
            _ => None,
        }
    }

    /// The request that [`Session::next_request`] returned was sent.
    pub(crate) fn sent(&mut self) {
        if let Some(call) = self.call() {
            *call = Call::Sent;
        }
    }

    /// Whether a request is to be sent.
    pub(crate) fn is_due(&self) -> bool {
        matches!(
            self,
            Session::Opening {
                call: Call::Due,
                ..
            } | Session::Abandoning {
                call: Call::Due,
                ..
            } | Session::Closing {
                call: Call::Due,
                ..
            }
        )
    }

    /// The mapper's handle of the session, if there is one.
    pub(crate) fn id(&self) -> u32 {
        match self {
            Session::Serving { id }
            | Session::Failing { id, .. }
            | Session::Abandoning { id, .. }
            | Session::Closing { id, .. } => *id,
            _ => 0,
        }
    }

    pub(crate) fn is_serving(&self) -> bool {
        matches!(self, Session::Serving { .. })
    }

    pub(crate) fn is_failing(&self) -> bool {
        matches!(self, Session::Failing { .. })
    }

    pub(crate) fn is_dead(&self) -> bool {
        matches!(self, Session::Dead)
    }

    /// Whether the volume is open for the driver.
    pub(crate) fn is_open(&self) -> bool {
        match self {
            Session::Opening { attempt, .. } | Session::Waiting { attempt } => {
                *attempt != Attempt::First
            }
            session => !session.is_dead(),
        }
    }

    /// Whether acknowledged writes may depend on this session or on its successor. None do before the first open, or if writes that are not
    /// durable are to be dropped.
    pub(crate) fn has_writes(&self) -> bool {
        match self {
            Session::Opening { attempt, .. } => *attempt != Attempt::First,
            Session::Serving { .. } | Session::Closing { .. } => true,
            _ => false,
        }
    }

    /// The open was refused because there is no room: the volume waits for [`Session::ask_again`].
    pub(crate) fn wait_for_room(&mut self) {
        if let Session::Opening { attempt, .. } = *self {
            *self = Session::Waiting { attempt };
        }
    }

    /// Asks for a session again if the volume waits for one. Returns whether it did.
    pub(crate) fn ask_again(&mut self) -> bool {
        let Session::Waiting { attempt } = *self else {
            return false;
        };
        *self = Session::opening(attempt);
        true
    }

    /// A sync failed. Returns whether this is the first failure.
    pub(crate) fn fail(&mut self, limit: u64) -> bool {
        let new = !self.is_failing();
        if new {
            *self = Session::Failing {
                id: self.id(),
                limit,
            };
        }
        new
    }

    /// Starts to drop writes that are not durable.
    pub(crate) fn abandon(&mut self, lost: Option<Error>) {
        *self = Session::Abandoning {
            id: self.id(),
            call: Call::Due,
            lost,
        };
    }

    /// Starts to close.
    pub(crate) fn close(&mut self, lost: Option<Error>) {
        *self = Session::Closing {
            id: self.id(),
            call: Call::Due,
            lost,
        };
    }

    /// Handles the mapper's answer.
    pub(crate) fn reply(&mut self, lineage: Lineage, reply: &MapReply) -> SessionEvent {
        if let Session::Opening { call, .. } = self {
            *call = Call::Due;
        }
        match (&mut *self, reply.result) {
            (Session::Opening { attempt, .. }, Ok(id)) => {
                let Some(object_size) = reply.object_size() else {
                    return SessionEvent::OpenRefused(ErrorCode::Internal);
                };
                let first = *attempt == Attempt::First;
                *self = Session::Serving { id };
                SessionEvent::Opened {
                    first,
                    size: reply.values[0],
                    object_size,
                    durable: reply.pool_is_durable(),
                }
            }
            (Session::Opening { attempt, .. }, Err(code)) => match (*attempt, code) {
                (Attempt::First, _) => SessionEvent::OpenRefused(code),
                // While no mapper serves, guests only wait.
                (_, ErrorCode::Unavailable) => SessionEvent::Nothing,
                // Writes that are not durable are lost; the next open finds the durable state. This happens once: if the disk keeps
                // failing, the open fails.
                (Attempt::Again | Attempt::AfterLoss, ErrorCode::SyncFailed) => {
                    *attempt = Attempt::AfterSecondLoss;
                    SessionEvent::LostAtReopen
                }
                _ => SessionEvent::OpenRefused(code),
            },
            (Session::Abandoning { lost, .. } | Session::Closing { lost, .. }, Ok(_))
            | (Session::Abandoning { lost, .. }, Err(_)) => {
                let lost = lost.take();
                SessionEvent::Ended { lost }
            }
            (Session::Closing { .. }, Err(code)) => {
                self.abandon(Some(session_error(lineage, "could not be closed", code)));
                SessionEvent::Nothing
            }
            _ => SessionEvent::Nothing,
        }
    }

    fn call(&mut self) -> Option<&mut Call> {
        match self {
            Session::Opening { call, .. }
            | Session::Abandoning { call, .. }
            | Session::Closing { call, .. } => Some(call),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINEAGE: Lineage = Lineage(5);

    fn op(session: &mut Session) -> Option<(MapOp, u8)> {
        let request = session.next_request(LINEAGE, OpenMode::ReadOnly)?;
        session.sent();
        assert!(session.next_request(LINEAGE, OpenMode::ReadOnly).is_none());
        Some((request.op, request.flags))
    }

    fn opened() -> MapReply {
        MapReply {
            values: [1 << 20, 16],
            ..MapReply::done(9)
        }
    }

    #[test]
    fn after_a_loss_the_volume_is_abandoned_and_opened_from_what_is_durable() {
        let mut session = Session::first();
        assert_eq!(op(&mut session), Some((MapOp::Open, 0)));
        assert!(!session.is_open());
        assert!(matches!(
            session.reply(LINEAGE, &opened()),
            SessionEvent::Opened { first: true, .. }
        ));
        assert!(session.is_serving() && session.is_open() && session.id() == 9);
        assert!(session.fail(3) && !session.fail(4));
        session.abandon(None);
        assert_eq!(op(&mut session), Some((MapOp::Abandon, 0)));
        assert!(matches!(
            session.reply(LINEAGE, &MapReply::failed(ErrorCode::Io)),
            SessionEvent::Ended { lost: None }
        ));
        session = Session::opening(Attempt::AfterLoss);
        assert_eq!(op(&mut session), Some((MapOp::Open, FLAG_DROP)));
        let failed = MapReply::failed(ErrorCode::SyncFailed);
        assert!(matches!(
            session.reply(LINEAGE, &failed),
            SessionEvent::LostAtReopen
        ));
        assert_eq!(op(&mut session), Some((MapOp::Open, FLAG_DROP)));
        assert!(matches!(
            session.reply(LINEAGE, &failed),
            SessionEvent::OpenRefused(ErrorCode::SyncFailed)
        ));
    }

    #[test]
    fn a_reopen_asks_until_somebody_is_there_and_a_first_open_does_not() {
        let away = MapReply::failed(ErrorCode::Unavailable);
        let mut session = Session::opening(Attempt::Again);
        for _ in 0..3 {
            assert_eq!(op(&mut session), Some((MapOp::Open, 0)));
            assert!(matches!(
                session.reply(LINEAGE, &away),
                SessionEvent::Nothing
            ));
        }
        let mut session = Session::first();
        assert_eq!(op(&mut session), Some((MapOp::Open, 0)));
        assert!(matches!(
            session.reply(LINEAGE, &away),
            SessionEvent::OpenRefused(ErrorCode::Unavailable)
        ));
    }

    #[test]
    fn a_close_that_fails_abandons_and_says_so() {
        let mut session = Session::Serving { id: 4 };
        session.close(None);
        assert_eq!(op(&mut session), Some((MapOp::Close, 0)));
        let failed = MapReply::failed(ErrorCode::Io);
        assert!(matches!(
            session.reply(LINEAGE, &failed),
            SessionEvent::Nothing
        ));
        assert_eq!(op(&mut session), Some((MapOp::Abandon, 0)));
        assert!(matches!(
            session.reply(LINEAGE, &MapReply::done(0)),
            SessionEvent::Ended { lost: Some(_) }
        ));
    }
}
