//! Map pages in memory: the cache, and loading what is not in it.
//!
//! Invariant: a page that several tasks wait for is read once.

use std::cell::{Ref, RefCell, RefMut};
use std::rc::Rc;

use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{ErrorCode, ObjectSize};

use crate::disk::{Disk, name_of};
use crate::failure::{Failure, Outcome};
use crate::format::Unreadable;
use crate::task::{Locks, Scheduler};
use crate::tree::{Cache, Missing, Node, PageRef, decode};

/// The pages of all volumes.
#[derive(Debug)]
pub(crate) struct Pages {
    cache: RefCell<Cache>,
    loading: Locks<PageRef>,
}

impl Pages {
    pub(crate) fn new(scheduler: &Rc<Scheduler>, bytes_max: usize) -> Self {
        Pages {
            cache: RefCell::new(Cache::new(bytes_max)),
            loading: Locks::new(scheduler),
        }
    }

    pub(crate) fn cache(&self) -> Ref<'_, Cache> {
        self.cache.borrow()
    }

    pub(crate) fn cache_mut(&self) -> RefMut<'_, Cache> {
        self.cache.borrow_mut()
    }

    /// Brings a page into the cache, once for all who wait for it; `count` is called if it is read. The page stays in the
    /// cache as long as the caller holds the node.
    pub(crate) async fn load(
        &self,
        disk: &Disk,
        missing: Missing,
        size: ObjectSize,
        count: impl FnOnce(),
    ) -> Outcome<Rc<Node>> {
        let page = missing.page;
        let _alone = self.loading.lock(page).await;
        if let Some(node) = self.cache.borrow().get(&page) {
            return Ok(Rc::clone(node));
        }
        count();
        let node = self.read(disk, missing, size).await?;
        self.cache.borrow_mut().insert(page, Rc::clone(&node));
        Ok(node)
    }

    /// Reads a page from the pool and checks it.
    pub(crate) async fn read(
        &self,
        disk: &Disk,
        missing: Missing,
        size: ObjectSize,
    ) -> Outcome<Rc<Node>> {
        let Missing { page, level } = missing;
        let id = ObjectId::pack(page.lineage, page.pack);
        let unreadable = |why: Unreadable| {
            let what = format!("the page at {} of {}", page.offset, name_of(id));
            Failure::unreadable(&what, why)
        };
        let damaged = |why: &str| unreadable(Unreadable::Damaged(why.to_owned()));
        // Whole units: a backend may read them without a copy.
        let skip = page.offset % 4096;
        let len = usize::try_from((skip + u64::from(page.len)).next_multiple_of(4096))
            .map_err(|_too_large| damaged("length"))?;
        let bytes =
            disk.read(id, page.offset - skip, len)
                .await
                .map_err(|failure| match failure.code {
                    ErrorCode::NotFound => damaged("it is missing"),
                    _ => failure,
                })?;
        let from = usize::try_from(skip).expect("below 4096");
        decode(&page, level, size, &bytes[from..from + page.len as usize])
            .map_err(|problem| unreadable(problem.into()))
    }
}
