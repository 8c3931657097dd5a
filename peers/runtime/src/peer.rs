//! What a reactor hosts.

/// Whether a poll found work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to do until something outside happens.
    Idle,
    /// Did something: poll again before sleeping.
    Busy,
}

impl Progress {
    /// Busy if either is.
    #[must_use]
    pub fn or(self, other: Progress) -> Progress {
        if self == Progress::Busy { self } else { other }
    }
}

/// A role that serves requests. Lives on one thread.
pub trait Peer {
    /// What it is called in logs and figures.
    fn name(&self) -> &str;

    /// Does a bounded piece of the work that is there. Never blocks.
    fn poll(&mut self) -> Progress;

    /// Announces sleep on the peer's ports; `false`: work has come in, do not sleep. Always paired with [`Peer::wake`].
    fn prepare_sleep(&mut self) -> bool {
        true
    }

    /// Takes the announcement of sleep back.
    fn wake(&mut self) {}
}
