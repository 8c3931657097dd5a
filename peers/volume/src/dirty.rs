//! Which containers hold completed writes that are not durable.

use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectRequest};
use archipelago_protocol::{Epoch, Lineage};

use crate::piece::Place;

/// Containers that are synced one by one: eight syncs in flight cost about what one sync of the pool does.
const SYNCS_MAX: usize = 8;
/// Bytes of a container, the unit of a sync: 64 GiB of volume.
const CONTAINER_LOG2: u32 = 36;

/// What one sync makes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Container {
    lineage: Lineage,
    epoch: Epoch,
    number: u64,
}

/// A set of containers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Dirty {
    containers: [Container; SYNCS_MAX],
    count: usize,
    /// More than fit: the whole pool is synced.
    pool: bool,
}

impl Dirty {
    /// A write at `offset` of `place` has completed.
    pub(crate) fn add(&mut self, place: Place, offset: u64) {
        self.add_container(Container {
            lineage: place.lineage,
            epoch: place.epoch,
            number: offset >> CONTAINER_LOG2,
        });
    }

    /// Adds all of `other`.
    pub(crate) fn add_all(&mut self, other: &Dirty) {
        self.pool |= other.pool;
        for container in &other.containers[..other.count] {
            self.add_container(*container);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0 && !self.pool
    }

    /// How many syncs make all of it durable.
    pub(crate) fn syncs(&self) -> usize {
        if self.pool { 1 } else { self.count }
    }

    /// The sync of this number.
    pub(crate) fn sync(&self, number: usize) -> ObjectRequest {
        if self.pool {
            return ObjectRequest::new(ObjectOp::SyncPool, ObjectId::head(Lineage::CATALOGUE));
        }
        let Container {
            lineage,
            epoch,
            number,
        } = self.containers[number];
        let id = ObjectId::data(lineage, epoch);
        ObjectRequest {
            offset: number << CONTAINER_LOG2,
            ..ObjectRequest::new(ObjectOp::Sync, id)
        }
    }

    fn add_container(&mut self, container: Container) {
        let known = &self.containers[..self.count];
        if self.pool || known.contains(&container) {
            return;
        }
        match self.containers.get_mut(self.count) {
            Some(slot) => {
                *slot = container;
                self.count += 1;
            }
            None => self.pool = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_containers_than_syncs_become_a_sync_of_the_pool() {
        let mut dirty = Dirty::default();
        let place = |epoch| Place {
            lineage: Lineage(1),
            epoch: Epoch(epoch),
        };
        for epoch in 0..8 {
            dirty.add(place(epoch), 5);
            dirty.add(place(epoch), 4096);
        }
        assert_eq!(dirty.syncs(), 8);
        assert_eq!(dirty.sync(3).op, ObjectOp::Sync);
        dirty.add(place(0), 1 << 36);
        assert_eq!((dirty.syncs(), dirty.sync(0).op), (1, ObjectOp::SyncPool));
    }
}
