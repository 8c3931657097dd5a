//! What a reactor hosts.

/// Whether a poll found work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There is no work until an event from outside arrives.
    Idle,
    /// Some work was done: poll again before sleeping.
    Busy,
}

impl Progress {
    /// Busy if either is.
    #[must_use]
    pub fn or(self, other: Progress) -> Progress {
        if self == Progress::Busy { self } else { other }
    }
}

/// A role that serves requests, on one thread.
pub trait Peer {
    /// Its name in logs and figures.
    fn name(&self) -> &str;

    /// Does a bounded part of the pending work. Never blocks.
    fn poll(&mut self) -> Progress;

    /// Announces on the peer's ports that the thread sleeps; `false`: work has come in, do not sleep. A call of [`Peer::wake`] always
    /// follows.
    fn prepare_sleep(&mut self) -> bool {
        true
    }

    /// Withdraws the announcement.
    fn wake(&mut self) {}
}
