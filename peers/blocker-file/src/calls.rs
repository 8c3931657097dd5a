//! Calls under way: a table in which each call has a place, by which its result finds it.
//!
//! Invariants
//! - A place is used again only when its call has been removed.
//! - Places are used again, so a steady load allocates nothing.

/// Bit offset of the part in a [`Token`].
const PART_SHIFT: u32 = 56;

/// The part of a backend that a call belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Part {
    /// [`crate::transfers::Transfers`].
    Transfers = 0,
    /// [`crate::syncs::Syncs`].
    Syncs = 1,
    /// [`crate::pending_opens::PendingOpens`].
    Opens = 2,
    /// [`crate::job_requests::JobRequests`].
    Requests = 3,
    /// [`crate::logs::Logs`].
    Logs = 4,
}

/// Identifies a call of the ring or of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    /// The part that made the call.
    pub(crate) part: Part,
    /// Its place in that part's table.
    pub(crate) index: usize,
}

impl Token {
    /// The token as user data of the ring.
    pub(crate) fn to_bits(self) -> u64 {
        (self.part as u64) << PART_SHIFT | self.index as u64
    }

    /// The token of the ring's user data; `None` if it belongs to none of the parts.
    pub(crate) fn from_bits(bits: u64) -> Option<Token> {
        let part = match bits >> PART_SHIFT {
            0 => Part::Transfers,
            1 => Part::Syncs,
            2 => Part::Opens,
            3 => Part::Requests,
            4 => Part::Logs,
            _ => return None,
        };
        let index = usize::try_from(bits & ((1 << PART_SHIFT) - 1)).ok()?;
        Some(Token { part, index })
    }
}

#[derive(Debug)]
struct Call<T> {
    /// When it began, in seconds.
    since: u64,
    what: T,
}

/// The calls of one part.
#[derive(Debug)]
pub(crate) struct Calls<T> {
    entries: Vec<Option<Call<T>>>,
    free: Vec<usize>,
    /// Monotonic time, as last reported.
    seconds: u64,
}

impl<T> Calls<T> {
    /// No calls, at the time `seconds`.
    pub(crate) fn new(seconds: u64) -> Self {
        Calls {
            entries: Vec::new(),
            free: Vec::new(),
            seconds,
        }
    }

    /// Sets the time.
    pub(crate) fn tick(&mut self, seconds: u64) {
        self.seconds = seconds;
    }

    /// Adds a call that begins now; returns its place.
    pub(crate) fn insert(&mut self, what: T) -> usize {
        let call = Some(Call {
            since: self.seconds,
            what,
        });
        match self.free.pop() {
            Some(index) => {
                self.entries[index] = call;
                index
            }
            None => {
                self.entries.push(call);
                self.entries.len() - 1
            }
        }
    }

    /// Removes the call at `index`, which has ended.
    pub(crate) fn remove(&mut self, index: usize) -> Option<T> {
        let call = self.entries.get_mut(index)?.take()?;
        self.free.push(index);
        Some(call.what)
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.entries
            .get_mut(index)?
            .as_mut()
            .map(|call| &mut call.what)
    }

    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.entries.get(index)?.as_ref().map(|call| &call.what)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten().map(|call| &call.what)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().flatten().map(|call| &mut call.what)
    }

    /// Each call with the seconds since it began.
    pub(crate) fn ages(&self) -> impl Iterator<Item = (u64, &T)> {
        let now = self.seconds;
        let calls = self.entries.iter().flatten();
        calls.map(move |call| (now.saturating_sub(call.since), &call.what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_from_the_ring_as_it_was() {
        for part in [Part::Transfers, Part::Syncs, Part::Opens, Part::Requests] {
            for index in [0, 1, 1 << 40] {
                let token = Token { part, index };
                assert_eq!(Token::from_bits(token.to_bits()), Some(token));
            }
        }
        assert_eq!(Token::from_bits(u64::MAX), None);
    }

    #[test]
    fn places_are_used_again_and_calls_know_their_age() {
        let mut calls = Calls::new(5);
        let [first, second] = ["first", "second"].map(|what| calls.insert(what));
        assert_eq!(calls.remove(first), Some("first"));
        assert_eq!(calls.remove(first), None);
        calls.tick(7);
        assert_eq!(calls.insert("third"), first);
        assert_eq!(calls.get(second), Some(&"second"));
        let ages: Vec<_> = calls.ages().map(|(age, what)| (age, *what)).collect();
        assert_eq!(ages, [(0, "third"), (2, "second")]);
    }
}
