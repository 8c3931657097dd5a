//! Memory for machines. A run is looked at in the middle of its work, so each machine needs memory of its own; a pool
//! spares the next one the page faults.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use xseg::Region;

/// Regions that no machine uses now.
#[derive(Debug, Clone, Default)]
pub struct MemoryPool {
    free: Rc<RefCell<BTreeMap<usize, Vec<Region>>>>,
}

/// A region of a pool, given back when it is dropped.
#[derive(Debug)]
pub struct Memory {
    region: Region,
    len: usize,
    pool: MemoryPool,
}

impl MemoryPool {
    /// A region of `len` bytes. What it holds is anything.
    ///
    /// # Panics
    /// If there is no memory.
    #[must_use]
    pub fn take(&self, len: usize) -> Memory {
        let free = self.free.borrow_mut().entry(len).or_default().pop();
        let region = free.unwrap_or_else(|| Region::anonymous(len).expect("memory for a machine"));
        Memory {
            region,
            len,
            pool: self.clone(),
        }
    }
}

impl std::ops::Deref for Memory {
    type Target = Region;

    fn deref(&self) -> &Region {
        &self.region
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut free = self.pool.free.borrow_mut();
        free.entry(self.len).or_default().push(self.region.clone());
    }
}
