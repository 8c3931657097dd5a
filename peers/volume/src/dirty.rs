//! Which objects hold completed writes that are not durable yet.

use archipelago_protocol::Lineage;
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectRequest};

use crate::piece::Place;

/// Objects that are recorded one by one, since a volume writes in few epochs at a time. If there are more, the whole pool is synced.
const OBJECTS_MAX: usize = 8;

/// A set of objects.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Dirty {
    objects: [Place; OBJECTS_MAX],
    count: usize,
    /// There are more objects than that: the whole pool is synced.
    pool: bool,
}

impl Dirty {
    /// A write at `place` has completed.
    pub(crate) fn add(&mut self, place: Place) {
        let known = &self.objects[..self.count];
        if self.pool || known.contains(&place) {
            return;
        }
        match self.objects.get_mut(self.count) {
            Some(slot) => {
                *slot = place;
                self.count += 1;
            }
            None => self.pool = true,
        }
    }

    /// Adds all of `other`.
    pub(crate) fn add_all(&mut self, other: &Dirty) {
        self.pool |= other.pool;
        for place in &other.objects[..other.count] {
            self.add(*place);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0 && !self.pool
    }

    /// Number of syncs that make all of it durable.
    pub(crate) fn syncs(&self) -> usize {
        if self.pool { 1 } else { self.count }
    }

    /// The sync with this number.
    pub(crate) fn sync(&self, number: usize) -> ObjectRequest {
        if self.pool {
            return ObjectRequest::new(ObjectOp::SyncPool, ObjectId::head(Lineage::CATALOGUE));
        }
        let Place { lineage, epoch } = self.objects[number];
        ObjectRequest::new(ObjectOp::Sync, ObjectId::data(lineage, epoch))
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::Epoch;

    use super::*;

    #[test]
    fn more_objects_than_are_noted_become_a_sync_of_the_pool() {
        let mut dirty = Dirty::default();
        let place = |epoch| Place {
            lineage: Lineage(1),
            epoch: Epoch(epoch),
        };
        for epoch in 0..8 {
            dirty.add(place(epoch));
            dirty.add(place(epoch));
        }
        assert_eq!(dirty.syncs(), 8);
        assert_eq!(dirty.sync(3).op, ObjectOp::Sync);
        dirty.add(place(8));
        assert_eq!((dirty.syncs(), dirty.sync(0).op), (1, ObjectOp::SyncPool));
    }
}
