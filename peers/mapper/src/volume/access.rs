//! The sessions of a volume, and whether the volume may be written.
//!
//! Invariants
//! - A volume has one writer, or any number of readers.
//! - A poisoned volume stays poisoned with the first reason until it is opened again.

use std::cell::Cell;

use archipelago_protocol::ErrorCode;

/// How a volume is loaded into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessMode {
    ReadWrite,
    /// A snapshot, an image, or a volume that is opened only for reading.
    ReadOnly,
}

/// Whether the volume may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteState {
    Writable,
    ReadOnly,
    /// A failure ended all writing, with this code. The volume must be opened again.
    Poisoned(ErrorCode),
}

/// The sessions that have the volume open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sessions {
    None,
    Readers(u32),
    Writer,
}

/// Sessions and write state of a volume.
#[derive(Debug)]
pub(crate) struct Access {
    sessions: Cell<Sessions>,
    write_state: Cell<WriteState>,
}

impl Access {
    pub(super) fn new(mode: AccessMode) -> Self {
        Access {
            sessions: Cell::new(Sessions::None),
            write_state: Cell::new(match mode {
                AccessMode::ReadWrite => WriteState::Writable,
                AccessMode::ReadOnly => WriteState::ReadOnly,
            }),
        }
    }

    /// Adds a session that writes.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if another session has the volume open.
    pub(crate) fn add_writer(&self) -> Result<(), ErrorCode> {
        match self.sessions.get() {
            Sessions::None => self.sessions.set(Sessions::Writer),
            Sessions::Readers(_) | Sessions::Writer => return Err(ErrorCode::InUse),
        }
        Ok(())
    }

    /// Adds a session that reads.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if a writer has the volume open.
    pub(crate) fn add_reader(&self) -> Result<(), ErrorCode> {
        match self.sessions.get() {
            Sessions::None => self.sessions.set(Sessions::Readers(1)),
            Sessions::Readers(count) => self.sessions.set(Sessions::Readers(count + 1)),
            Sessions::Writer => return Err(ErrorCode::InUse),
        }
        Ok(())
    }

    /// Ends a session. Returns whether it was the last reader.
    pub(crate) fn remove_session(&self) -> bool {
        match self.sessions.get() {
            Sessions::Readers(count) if count > 1 => {
                self.sessions.set(Sessions::Readers(count - 1));
                false
            }
            sessions => {
                self.sessions.set(Sessions::None);
                matches!(sessions, Sessions::Readers(_))
            }
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.sessions.get() != Sessions::None
    }

    pub(crate) fn has_writer(&self) -> bool {
        self.sessions.get() == Sessions::Writer
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.write_state.get() == WriteState::ReadOnly
    }

    /// Makes a volume read-only that was loaded for writing and cannot be written.
    pub(crate) fn make_read_only(&self) {
        self.write_state.set(WriteState::ReadOnly);
    }

    /// Why the volume is poisoned, if it is.
    pub(crate) fn poisoned(&self) -> Option<ErrorCode> {
        match self.write_state.get() {
            WriteState::Poisoned(code) => Some(code),
            WriteState::Writable | WriteState::ReadOnly => None,
        }
    }

    /// Ends all writing because of `code`, unless the volume is read-only or poisoned already.
    pub(crate) fn poison(&self, code: ErrorCode) {
        if self.write_state.get() == WriteState::Writable {
            self.write_state.set(WriteState::Poisoned(code));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_alone_and_readers_are_not() {
        let access = Access::new(AccessMode::ReadWrite);
        assert_eq!((access.add_reader(), access.add_reader()), (Ok(()), Ok(())));
        assert_eq!(access.add_writer(), Err(ErrorCode::InUse));
        assert!(!access.remove_session() && access.is_open());
        assert!(
            access.remove_session() && !access.is_open(),
            "the last reader"
        );
        assert_eq!(access.add_writer(), Ok(()));
        assert_eq!(access.add_reader(), Err(ErrorCode::InUse));
        assert_eq!(access.add_writer(), Err(ErrorCode::InUse));
        assert!(access.has_writer() && !access.remove_session() && !access.is_open());
    }

    #[test]
    fn the_first_poison_stays_and_what_is_only_read_has_none() {
        let access = Access::new(AccessMode::ReadWrite);
        access.poison(ErrorCode::Stale);
        access.poison(ErrorCode::SyncFailed);
        assert_eq!(access.poisoned(), Some(ErrorCode::Stale));
        let access = Access::new(AccessMode::ReadOnly);
        access.poison(ErrorCode::SyncFailed);
        assert_eq!((access.poisoned(), access.is_read_only()), (None, true));
    }
}
