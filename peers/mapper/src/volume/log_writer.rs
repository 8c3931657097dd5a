//! A volume's log while the volume is open, and whether data in it has been written back.
//!
//! Invariant: log space is given up only by [`LogWriter::trim`], after a head that does not need it, and after a sync of the
//! pool if [`LogWriter::holds_data`].

use std::cell::{Cell, RefCell};

use archipelago_protocol::Generation;

use crate::disk::Disk;
use crate::failure::Outcome;
use crate::log::{Content, Log};

/// The log of an open volume.
#[derive(Debug)]
pub(crate) struct LogWriter {
    log: RefCell<Log>,
    /// Position behind the last batch with journaled data; 0: none of this session, or all of the data was written back.
    data_until: Cell<u64>,
}

impl LogWriter {
    pub(super) fn new(log: Log) -> Self {
        LogWriter {
            log: RefCell::new(log),
            data_until: Cell::new(0),
        }
    }

    /// Where the next batch goes.
    pub(crate) fn position(&self) -> u64 {
        self.log.borrow().position
    }

    pub(crate) fn is_half_full(&self) -> bool {
        self.log.borrow().is_half_full()
    }

    /// Longest batch, if a request is at most `io_len_max` bytes long.
    pub(crate) fn batch_max(&self, io_len_max: usize) -> usize {
        self.log.borrow().batch_max(io_len_max)
    }

    /// How many records may be pending: they always have room.
    pub(crate) fn records_room(&self, io_len_max: usize) -> usize {
        let log = self.log.borrow();
        log.records_room(log.batch_max(io_len_max))
    }

    pub(crate) fn has_room(&self, len: usize, batch_max: usize) -> bool {
        self.log.borrow().has_room(len, batch_max)
    }

    /// Bytes of batches that an empty log has room for.
    pub(crate) fn len_max(&self, batch_max: usize) -> usize {
        self.log.borrow().len_max(batch_max)
    }

    /// Whether the log holds data that may not be durable at its home location.
    pub(crate) fn holds_data(&self) -> bool {
        self.data_until.get() > self.log.borrow().start
    }

    /// All data of the log is durable at its home location.
    pub(crate) fn data_written_back(&self) {
        self.data_until.set(0);
    }

    /// Appends a batch durably. The caller holds the commit lock and has asked for room.
    pub(crate) async fn append(&self, disk: &Disk, content: &Content) -> Outcome<()> {
        Log::append(&self.log, disk, content).await
    }

    /// The batch that was appended last holds data.
    pub(crate) fn data_appended(&self) {
        self.data_until.set(self.position());
    }

    /// A head was stored that needs nothing in front of `position`.
    pub(crate) fn trim(&self, position: u64) {
        self.log.borrow_mut().start = position;
    }

    /// A session of `generation` begins at `position`, with nothing to be replayed.
    pub(crate) fn restart(&self, position: u64, generation: Generation) {
        let mut log = self.log.borrow_mut();
        log.start = position;
        log.position = position;
        log.generation = generation;
        log.token = generation;
        self.data_until.set(0);
    }

    /// A copy to be replayed.
    pub(crate) fn to_replay(&self) -> Log {
        self.log.borrow().clone()
    }

    /// Takes the copy that was replayed; whether it holds data that may not be written back.
    pub(crate) fn replayed(&self, log: Log, holds_data: bool) {
        self.data_until
            .set(if holds_data { log.position } else { 0 });
        *self.log.borrow_mut() = log;
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::Lineage;
    use archipelago_protocol::object::ObjectId;

    use super::*;

    #[test]
    fn data_is_held_until_it_was_written_back_or_its_space_given_up() {
        let log = Log {
            id: ObjectId::log(Lineage(5), 1),
            len: 1 << 20,
            start: 8192,
            position: 8192,
            generation: Generation(2),
            token: Generation(2),
        };
        let writer = LogWriter::new(log);
        let appended = || {
            let mut log = writer.to_replay();
            log.position += 4096;
            writer.replayed(log, true);
        };
        assert!(!writer.holds_data());
        appended();
        assert!(writer.holds_data());
        writer.data_written_back();
        assert!(!writer.holds_data());
        appended();
        writer.trim(writer.position() - 4096);
        assert!(writer.holds_data());
        writer.trim(writer.position());
        assert!(!writer.holds_data());
        appended();
        writer.restart(writer.position(), Generation(3));
        assert!(!writer.holds_data());
    }
}
