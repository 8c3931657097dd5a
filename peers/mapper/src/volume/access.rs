//! Who has a volume open, and whether it may be written.

use std::cell::Cell;

use archipelago_protocol::ErrorCode;

/// What a volume in memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    ReadWrite,
    /// A frozen thing, or a closed volume opened for reading.
    ReadOnly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Writable,
    ReadOnly,
    /// Nothing may be written until the volume was opened again, and why.
    Poisoned(ErrorCode),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Users {
    None,
    Readers(u32),
    Writer,
}

/// Sessions and standing of a volume.
#[derive(Debug)]
pub(crate) struct Access {
    users: Cell<Users>,
    standing: Cell<Standing>,
}

impl Access {
    pub(super) fn new(mode: Mode) -> Self {
        Access {
            users: Cell::new(Users::None),
            standing: Cell::new(match mode {
                Mode::ReadWrite => Standing::Writable,
                Mode::ReadOnly => Standing::ReadOnly,
            }),
        }
    }

    /// Adds a session that writes.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`]: somebody has it open.
    pub(crate) fn add_writer(&self) -> Result<(), ErrorCode> {
        match self.users.get() {
            Users::None => self.users.set(Users::Writer),
            Users::Readers(_) | Users::Writer => return Err(ErrorCode::InUse),
        }
        Ok(())
    }

    /// Adds a session that reads.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`]: somebody writes.
    pub(crate) fn add_reader(&self) -> Result<(), ErrorCode> {
        match self.users.get() {
            Users::None => self.users.set(Users::Readers(1)),
            Users::Readers(count) => self.users.set(Users::Readers(count + 1)),
            Users::Writer => return Err(ErrorCode::InUse),
        }
        Ok(())
    }

    /// Ends a session. Whether it was the last one that read.
    pub(crate) fn remove_user(&self) -> bool {
        match self.users.get() {
            Users::Readers(count) if count > 1 => {
                self.users.set(Users::Readers(count - 1));
                false
            }
            users => {
                self.users.set(Users::None);
                matches!(users, Users::Readers(_))
            }
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.users.get() != Users::None
    }

    pub(crate) fn has_writer(&self) -> bool {
        self.users.get() == Users::Writer
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.standing.get() == Standing::ReadOnly
    }

    pub(crate) fn make_read_only(&self) {
        self.standing.set(Standing::ReadOnly);
    }

    /// Why nothing may be written any more, if so.
    pub(crate) fn poisoned(&self) -> Option<ErrorCode> {
        match self.standing.get() {
            Standing::Poisoned(code) => Some(code),
            Standing::Writable | Standing::ReadOnly => None,
        }
    }

    /// Ends all writing. The first reason stays.
    pub(crate) fn poison(&self, code: ErrorCode) {
        if self.standing.get() == Standing::Writable {
            self.standing.set(Standing::Poisoned(code));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_alone_and_readers_are_not() {
        let access = Access::new(Mode::ReadWrite);
        assert_eq!((access.add_reader(), access.add_reader()), (Ok(()), Ok(())));
        assert_eq!(access.add_writer(), Err(ErrorCode::InUse));
        assert!(!access.remove_user() && access.is_open());
        assert!(access.remove_user() && !access.is_open(), "the last reader");
        assert_eq!(access.add_writer(), Ok(()));
        assert_eq!(access.add_reader(), Err(ErrorCode::InUse));
        assert_eq!(access.add_writer(), Err(ErrorCode::InUse));
        assert!(access.has_writer() && !access.remove_user() && !access.is_open());
    }

    #[test]
    fn the_first_poison_stays_and_what_is_only_read_has_none() {
        let access = Access::new(Mode::ReadWrite);
        access.poison(ErrorCode::Stale);
        access.poison(ErrorCode::SyncFailed);
        assert_eq!(access.poisoned(), Some(ErrorCode::Stale));
        let access = Access::new(Mode::ReadOnly);
        access.poison(ErrorCode::SyncFailed);
        assert_eq!((access.poisoned(), access.is_read_only()), (None, true));
    }
}
