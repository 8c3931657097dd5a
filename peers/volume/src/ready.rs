//! Volumes with work, in the order of their turns.

use std::collections::VecDeque;

use crate::limits::VOLUMES_MAX;

/// The queue of volumes with work. Each volume is in it at most once, so it never grows.
#[derive(Debug)]
pub(crate) struct Ready {
    queue: VecDeque<u32>,
    queued: Vec<bool>,
    /// Since the last poll, something has arrived that must be done or collected.
    kicked: bool,
}

impl Default for Ready {
    fn default() -> Self {
        Ready {
            queue: VecDeque::with_capacity(VOLUMES_MAX as usize),
            queued: vec![false; VOLUMES_MAX as usize],
            kicked: false,
        }
    }
}

impl Ready {
    /// Adds volume `v`, which gets a turn.
    pub(crate) fn add(&mut self, v: u32) {
        self.kicked = true;
        if !std::mem::replace(&mut self.queued[v as usize], true) {
            self.queue.push_back(v);
        }
    }

    /// The volume whose turn is next.
    pub(crate) fn next(&mut self) -> Option<u32> {
        let v = self.queue.pop_front()?;
        self.queued[v as usize] = false;
        Some(v)
    }

    /// Number of volumes that wait for their turn.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Records that the thread must not sleep before the next poll.
    pub(crate) fn kick(&mut self) {
        self.kicked = true;
    }

    /// A poll has handled everything.
    pub(crate) fn settle(&mut self) {
        self.kicked = false;
    }

    /// Whether [`Ready::kick`] was called since the last poll.
    pub(crate) fn is_kicked(&self) -> bool {
        self.kicked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_stands_in_the_queue_once() {
        let mut ready = Ready::default();
        [3, 5, 3].into_iter().for_each(|v| ready.add(v));
        assert_eq!((ready.len(), ready.next()), (2, Some(3)));
        ready.add(3);
        let order: Vec<u32> = std::iter::from_fn(|| ready.next()).collect();
        assert_eq!(order, [5, 3]);
    }
}
