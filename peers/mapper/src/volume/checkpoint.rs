//! Checkpoints: the tree as pages, then a head that names them, so that the log can begin anew.
//!
//! The picture is taken while no batch is in flight. What is pending at that moment is in the picture too: the pool is
//! synced before its pages are written, and so it is if the log carries blocks: their log space is given up. What is
//! pending stays so: replaying it over the picture changes nothing.

use std::rc::Rc;

use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{Epoch, ErrorCode};

use super::Volume;
use crate::core::Core;
use crate::failure::{Failure, Outcome};
use crate::head::VolumeHead;
use crate::task::Guard;
use crate::tree::{Root, Tree};

/// How pages become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageSync {
    /// By a sync of their pack: the volume's own affair.
    Pack,
    /// By a sync of the pool, one for all volumes that ask meanwhile: a hundred that are opened together after a crash
    /// would sync a new pack and its names each.
    Pool,
}

/// A volume at a moment without a batch in flight.
struct Picture {
    tree: Tree,
    epoch: Epoch,
    frozen: Epoch,
    log_position: u64,
    /// Whether it shows what the log does not, or carries: that data may not be durable.
    unsynced: bool,
}

impl Volume {
    fn picture(&self) -> Picture {
        let live = self.live.borrow();
        Picture {
            tree: live.tree.clone(),
            epoch: live.epoch,
            frozen: live.frozen,
            log_position: self.log.borrow().position,
            unsynced: !live.pending.is_empty() || self.carries(&self.log.borrow()),
        }
    }

    /// A checkpoint while the caller keeps batches away until it is done.
    pub(super) async fn checkpoint_holding(&self, core: &Rc<Core>, _commit: &Guard) -> Outcome<()> {
        let _alone = self.checkpoint.acquire().await;
        self.check()?;
        let picture = self.picture();
        self.store(core, picture, false).await
    }

    /// A checkpoint beside which commits go on.
    async fn checkpoint(&self, core: &Rc<Core>) -> Outcome<()> {
        let commit = self.commit.acquire().await;
        let _alone = self.checkpoint.acquire().await;
        self.check()?;
        if !self.log.borrow().is_half_full() {
            return Ok(());
        }
        let picture = self.picture();
        drop(commit);
        self.store(core, picture, false).await
    }

    /// The last checkpoint of a session: its head says that nothing is to be replayed.
    pub(super) async fn checkpoint_clean(&self, core: &Rc<Core>) -> Outcome<()> {
        let _commit = self.commit.acquire().await;
        let _alone = self.checkpoint.acquire().await;
        self.check()?;
        let picture = self.picture();
        self.store(core, picture, true).await?;
        let mut live = self.live.borrow_mut();
        live.pending.clear();
        Ok(())
    }

    async fn store(&self, core: &Rc<Core>, picture: Picture, clean: bool) -> Outcome<()> {
        if self.is_before_head() {
            let why = format!("the session of {} has not begun", self.lineage);
            return Err(Failure::new(ErrorCode::NoSpace, why));
        }
        if picture.unsynced {
            let synced = core.sync_pool().await;
            self.judge(core, synced)?;
        }
        let root = self.store_tree(core, &picture.tree, PageSync::Pack).await?;
        let head = VolumeHead {
            clean,
            epoch: picture.epoch,
            frozen: picture.frozen,
            root,
            log_start: picture.log_position,
            ..self.head.get()
        };
        self.swap_head(core, head).await?;
        self.log.borrow_mut().start = picture.log_position;
        drop(picture);
        self.live.borrow_mut().tree.release_stored();
        core.count(|counters| counters.checkpoints += 1);
        Ok(())
    }

    pub(super) async fn swap_head(&self, core: &Rc<Core>, head: VolumeHead) -> Outcome<()> {
        let swapped = self.head.swap(&core.disk, head).await;
        self.judge(core, swapped)
    }

    /// Makes the pages of `tree` that are not stored durable.
    pub(super) async fn store_tree(
        &self,
        core: &Rc<Core>,
        tree: &Tree,
        sync: PageSync,
    ) -> Outcome<Root> {
        if tree.is_stored()
            && let Some(root) = tree.stored_root()
        {
            return Ok(root);
        }
        let (pack, offset, written, root) = {
            let mut live = self.live.borrow_mut();
            let (pack, offset) = (live.pack, live.pack_offset);
            let (written, root) = tree.pages(self.lineage, pack, offset);
            // Never written twice, whatever becomes of it.
            live.pack_offset = offset + written.bytes.len().next_multiple_of(4096) as u64;
            (ObjectId::pack(self.lineage, pack), offset, written, root)
        };
        let mut bytes = written.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        // Nothing durable refers to these pages yet: a failed write loses nothing, a failed sync is final as any other.
        if let Err(failure) = core.disk.write(pack, offset, &bytes).await {
            let mut live = self.live.borrow_mut();
            if failure.code == ErrorCode::NoSpace && live.pack_offset == offset + bytes.len() as u64
            {
                // Tried again and again: what there is of these pages shall not take ever more room.
                live.pack_offset = offset;
            }
            return Err(failure);
        }
        let synced = match sync {
            PageSync::Pack => core.disk.sync(pack).await,
            PageSync::Pool => core.sync_pool().await,
        };
        self.judge(core, synced)?;
        written.mark_stored(&mut core.cache.borrow_mut());
        core.count(|counters| counters.pages_written += written.count());
        Ok(root)
    }
}

/// Starts a checkpoint if the log is half full and none is under way.
pub(super) fn when_due(core: &Rc<Core>, volume: &Rc<Volume>) {
    let due = volume.log.borrow().is_half_full();
    let mut live = volume.live.borrow_mut();
    if !due || live.checkpointing || live.poison.is_some() || live.due.is_some() {
        return;
    }
    live.checkpointing = true;
    let (core, volume) = (Rc::clone(core), Rc::clone(volume));
    core.scheduler.clone().spawn(async move {
        let (lineage, done) = (volume.lineage, volume.checkpoint(&core).await);
        match done {
            Ok(()) => {}
            // As often as something is logged; who finds no room says so.
            Err(failure) if failure.code.passes() => {
                tracing::debug!("checkpoint of {lineage} put off: {}", failure.message);
            }
            Err(failure) => {
                tracing::warn!("checkpoint of {lineage} put off: {}", failure.message);
            }
        }
        volume.live.borrow_mut().checkpointing = false;
    });
}
