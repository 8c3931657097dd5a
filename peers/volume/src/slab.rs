//! Tables of fixed size with free lists, and queues that are linked through their slots.
//!
//! Invariants
//! - A slab never grows: its memory is allocated once, and touched at first use. A full slab is an ordinary result.
//! - An item is in at most one [`Queue`] at a time: its only link is the index of the next item.

/// The link of the last item.
pub(crate) const NONE: u32 = u32::MAX;

/// An item that can be in a queue.
pub(crate) trait Linked {
    /// The link to the next item of the queue that this one is in.
    fn link(&mut self) -> &mut u32;
}

/// A table with a fixed number of slots.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
    capacity: u32,
}

impl<T> Slab<T> {
    pub(crate) fn new(capacity: u32) -> Self {
        Slab {
            slots: Vec::with_capacity(capacity as usize),
            free: Vec::with_capacity(capacity as usize),
            capacity,
        }
    }

    /// Puts `item` into a free slot and returns the slot; `None` if none is free.
    pub(crate) fn insert(&mut self, item: T) -> Option<u32> {
        self.insert_with(|_| item)
    }

    /// Makes an item for a free slot and puts it there; `None` if none is free.
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(u32) -> T) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("below the capacity")
        });
        self.slots[index as usize] = Some(make(index));
        Some(index)
    }

    /// Removes the item; its slot becomes free.
    pub(crate) fn remove(&mut self, index: u32) -> T {
        let item = self.slots[index as usize]
            .take()
            .expect("only items in use are removed");
        self.free.push(index);
        item
    }

    /// The item in slot `index`, if there is one.
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize)?.as_ref()
    }

    /// Every item and its slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0u32..)
            .zip(&self.slots)
            .filter_map(|(index, slot)| slot.as_ref().map(|item| (index, item)))
    }

    /// As [`Slab::iter`], with mutable items.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        (0u32..)
            .zip(&mut self.slots)
            .filter_map(|(index, slot)| slot.as_mut().map(|item| (index, item)))
    }

    /// Number of slots in use.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.vacant() == 0
    }

    /// Number of free slots.
    pub(crate) fn vacant(&self) -> usize {
        self.capacity as usize - self.len()
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        self.slots[index as usize]
            .as_ref()
            .expect("only items in use are looked at")
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        self.slots[index as usize]
            .as_mut()
            .expect("only items in use are looked at")
    }
}

/// First in, first out; the links are in the items.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queue {
    head: u32,
    tail: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Queue {
            head: NONE,
            tail: NONE,
        }
    }
}

impl Queue {
    pub(crate) fn push<T: Linked>(&mut self, slab: &mut Slab<T>, index: u32) {
        *slab[index].link() = NONE;
        if self.tail == NONE {
            self.head = index;
        } else {
            *slab[self.tail].link() = index;
        }
        self.tail = index;
    }

    /// Adds `index` before all others.
    pub(crate) fn push_front<T: Linked>(&mut self, slab: &mut Slab<T>, index: u32) {
        *slab[index].link() = self.head;
        self.head = index;
        if self.tail == NONE {
            self.tail = index;
        }
    }

    pub(crate) fn pop<T: Linked>(&mut self, slab: &mut Slab<T>) -> Option<u32> {
        let index = self.front()?;
        self.head = *slab[index].link();
        if self.head == NONE {
            self.tail = NONE;
        }
        Some(index)
    }

    pub(crate) fn front(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head == NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Item(u32);

    impl Linked for Item {
        fn link(&mut self) -> &mut u32 {
            &mut self.0
        }
    }

    #[test]
    fn a_full_slab_refuses_and_a_queue_keeps_its_order() {
        let mut slab = Slab::new(3);
        let mut queue = Queue::default();
        for _ in 0..3 {
            let index = slab.insert(Item(NONE)).unwrap();
            queue.push(&mut slab, index);
        }
        assert!(slab.is_full());
        assert!(slab.insert(Item(NONE)).is_none());
        let order: Vec<u32> = std::iter::from_fn(|| queue.pop(&mut slab)).collect();
        assert_eq!(order, [0, 1, 2]);
        assert!(queue.is_empty());
        [2, 0]
            .into_iter()
            .for_each(|index| queue.push_front(&mut slab, index));
        queue.push(&mut slab, 1);
        let order: Vec<u32> = std::iter::from_fn(|| queue.pop(&mut slab)).collect();
        assert_eq!(order, [0, 2, 1]);
        slab.remove(1);
        assert_eq!(slab.insert(Item(NONE)), Some(1));
    }
}
