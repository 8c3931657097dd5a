//! Requests in the kernel, by what they mean for polling and sleeping.

use crate::polling::Activity;
use crate::transfer::Direction;

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A read or write.
    Transfer,
    Sync,
    /// A watch or timeout: stays in the kernel while the thread is idle.
    Standing,
    /// Waits for a request of a device; nobody can cancel it.
    Command,
    /// A read or write that is carried out outside the kernel, and whose end is an event of a watch.
    Elsewhere,
}

/// Counts of requests in the kernel, and the maximum since the last call of [`Load::activity`].
#[derive(Debug, Default)]
pub(crate) struct Load {
    transfers: usize,
    syncs: usize,
    standing: usize,
    commands: usize,
    elsewhere: usize,
    transfers_max: usize,
    bytes_max: usize,
}

impl Kind {
    /// Whether it is a call on a file: nobody cancels such a call, and it is tried again.
    pub(crate) fn is_call(self) -> bool {
        matches!(self, Kind::Transfer | Kind::Sync)
    }

    /// A durable write ends in kernel threads, as a sync does: a polling thread would take their CPU time.
    pub(crate) fn of(direction: Direction) -> Kind {
        match direction {
            Direction::Write { durable: true } => Kind::Sync,
            Direction::Read | Direction::Write { durable: false } => Kind::Transfer,
        }
    }
}

impl Load {
    /// A request is submitted to the kernel; `bytes` are those of its buffers, which count for reads and writes.
    pub(crate) fn begin(&mut self, kind: Kind, bytes: usize) {
        *self.count(kind) += 1;
        if matches!(kind, Kind::Transfer | Kind::Elsewhere) {
            self.transfers_max = self.transfers_max.max(self.awaited());
            self.bytes_max = self.bytes_max.max(bytes);
        }
    }

    /// A request has completed.
    pub(crate) fn end(&mut self, kind: Kind) {
        *self.count(kind) -= 1;
    }

    /// Reads, writes and syncs in the kernel.
    pub(crate) fn in_flight(&self) -> usize {
        self.transfers + self.syncs
    }

    /// Whether commands are in the kernel.
    pub(crate) fn has_commands(&self) -> bool {
        self.commands > 0
    }

    /// Whether nothing but commands is in the kernel.
    pub(crate) fn is_empty(&self) -> bool {
        self.in_flight() + self.standing == 0
    }

    /// Whether only syncs are awaited: they run on kernel workers that may need this CPU.
    pub(crate) fn is_syncs_only(&self) -> bool {
        self.syncs > 0 && self.awaited() == 0
    }

    /// Reads and writes, in the kernel and elsewhere.
    fn awaited(&self) -> usize {
        self.transfers + self.elsewhere
    }

    /// Requests in the kernel now, and since the last call.
    pub(crate) fn activity(&mut self) -> Activity {
        let activity = Activity {
            transfers: self.awaited(),
            syncs: self.syncs,
            transfers_max: self.transfers_max,
            bytes_max: self.bytes_max,
        };
        self.transfers_max = self.awaited();
        self.bytes_max = 0;
        activity
    }

    fn count(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Transfer => &mut self.transfers,
            Kind::Sync => &mut self.syncs,
            Kind::Standing => &mut self.standing,
            Kind::Command => &mut self.commands,
            Kind::Elsewhere => &mut self.elsewhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_is_remembered_until_it_is_asked_for() {
        let mut load = Load::default();
        load.begin(Kind::Transfer, 4096);
        load.begin(Kind::Transfer, 8192);
        load.begin(Kind::Sync, 1 << 20);
        load.end(Kind::Transfer);
        let activity = Activity {
            transfers: 1,
            syncs: 1,
            transfers_max: 2,
            bytes_max: 8192,
        };
        assert_eq!(load.activity(), activity);
        let later = Activity {
            transfers_max: 1,
            bytes_max: 0,
            ..activity
        };
        assert_eq!(load.activity(), later);
    }

    #[test]
    fn watches_are_not_waited_for() {
        let mut load = Load::default();
        load.begin(Kind::Standing, 0);
        assert_eq!((load.in_flight(), load.is_empty()), (0, false));
        load.begin(Kind::Sync, 0);
        assert!(load.is_syncs_only());
        load.begin(Kind::Transfer, 1);
        assert!(!load.is_syncs_only());
        assert_eq!(load.in_flight(), 2);
    }

    #[test]
    fn what_is_under_way_elsewhere_is_waited_for_and_keeps_no_ring() {
        let mut load = Load::default();
        load.begin(Kind::Elsewhere, 8192);
        assert_eq!((load.in_flight(), load.is_empty()), (0, true));
        load.begin(Kind::Transfer, 4096);
        load.end(Kind::Transfer);
        let activity = Activity {
            transfers: 1,
            syncs: 0,
            transfers_max: 2,
            bytes_max: 8192,
        };
        assert_eq!(load.activity(), activity);
        load.end(Kind::Elsewhere);
        assert_eq!(load.activity().transfers, 0);
    }
}
