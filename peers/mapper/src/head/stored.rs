//! A head as it is stored: its content, and the version that the next compare-and-swap must find.

use std::cell::Cell;

use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{ErrorCode, Lineage};

use super::{Head, fallen};
use crate::disk::{Disk, name_of};
use crate::failure::{Failure, Outcome};

/// The stored head of a lineage. One swap at a time: the caller holds a lock.
#[derive(Debug)]
pub(crate) struct StoredHead<H: Copy> {
    lineage: Lineage,
    content: Cell<H>,
    /// 0: there is none yet.
    version: Cell<u64>,
}

impl<H: Head> StoredHead<H> {
    /// A head that was read, or, with version 0, the first one to write.
    pub(crate) fn new(lineage: Lineage, content: H, version: u64) -> Self {
        StoredHead {
            lineage,
            content: Cell::new(content),
            version: Cell::new(version),
        }
    }

    /// The last one that was read or written.
    pub(crate) fn get(&self) -> H {
        self.content.get()
    }

    /// Whether none was written yet.
    pub(crate) fn is_first(&self) -> bool {
        self.version.get() == 0
    }

    /// Takes what was read again.
    ///
    /// # Errors
    /// It is damaged if it is older than what was read or written before.
    pub(crate) fn refresh(&self, content: H, version: u64) -> Outcome<()> {
        if let Some((field, before, now)) = fallen(&self.content.get(), &content) {
            return Err(Failure::damaged(format!(
                "{} is an old one: its {field} is {now} and was {before} already",
                name_of(ObjectId::head(self.lineage))
            )));
        }
        self.content.set(content);
        self.version.set(version);
        Ok(())
    }

    /// Makes `next` the head, durably. Commit point: the compare-and-swap.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`] if a field of `next` falls that must only grow: nothing is written, and the session that asked
    /// cannot go on. What the blocker says.
    ///
    /// # Panics
    /// If another swap came in between.
    pub(crate) async fn swap(&self, disk: &Disk, next: H) -> Outcome<()> {
        self.check_follows(&next)?;
        let (id, version) = (ObjectId::head(self.lineage), self.version.get());
        let bytes = next.to_bytes(self.lineage);
        let stored = disk.swap(id, version, bytes).await?;
        assert_eq!(
            self.version.get(),
            version,
            "two swaps of {} at a time",
            name_of(id)
        );
        self.content.set(next);
        self.version.set(stored);
        Ok(())
    }

    /// Checks what no head may do, whatever mistake made it: an older generation, epoch or log position could make a recovery
    /// take what was overwritten for what is there.
    fn check_follows(&self, next: &H) -> Outcome<()> {
        let Some((field, before, now)) = fallen(&self.content.get(), next) else {
            return Ok(());
        };
        let head = name_of(ObjectId::head(self.lineage));
        let why = format!(
            "the {field} of {head} would fall from {before} to {now}: the head was not written"
        );
        tracing::error!("{why}");
        Err(Failure::new(ErrorCode::Internal, why))
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use archipelago_protocol::object::{ObjectOp, ObjectReply};
    use archipelago_protocol::{Epoch, ErrorCode, Generation, ObjectSize};

    use super::super::{CatalogueHead, VolumeHead};
    use super::*;
    use crate::task::Scheduler;
    use crate::tests::run_task;
    use crate::tree::Root;

    const US: Lineage = Lineage(9);

    fn head() -> VolumeHead {
        VolumeHead {
            generation: Generation(3),
            owner: 99,
            takeovers: 0,
            clean: true,
            object_size: ObjectSize::MIN,
            epoch: Epoch(5),
            frozen: Epoch(4),
            root: Root::default(),
            log_number: 2,
            log_len: 1 << 20,
            log_start: 8192,
            compatible: 0,
        }
    }

    /// The head after a swap to `next` that a blocker answers with `version`, and what the swap came to.
    fn swapped(
        next: VolumeHead,
        version: Result<u64, ErrorCode>,
    ) -> (StoredHead<VolumeHead>, Outcome<()>) {
        let scheduler = Rc::new(Scheduler::default());
        let disk = Rc::new(Disk::new(&scheduler, 16384));
        let stored = Rc::new(StoredHead::new(US, head(), 7));
        let (task_disk, task_stored) = (Rc::clone(&disk), Rc::clone(&stored));
        let task = async move { task_stored.swap(&task_disk, next).await };
        let outcome = run_task(&scheduler, &disk, task, |request| {
            assert_eq!(request.op, ObjectOp::CompareAndSwap);
            let reply = match version {
                Ok(version) => ObjectReply {
                    values: [version, 0],
                    ..ObjectReply::done(0)
                },
                Err(code) => ObjectReply::failed(code),
            };
            (reply, Vec::new())
        });
        (Rc::into_inner(stored).expect("the task has ended"), outcome)
    }

    #[test]
    fn a_swap_that_succeeded_gives_content_and_version() {
        let next = VolumeHead {
            generation: Generation(4),
            epoch: Epoch(6),
            clean: false,
            log_start: 12288,
            ..head()
        };
        let (stored, outcome) = swapped(next, Ok(8));
        assert_eq!((outcome, stored.get()), (Ok(()), next));
        assert_eq!(stored.version.get(), 8);
        let (stored, outcome) = swapped(next, Err(ErrorCode::Stale));
        assert_eq!(outcome.unwrap_err().code, ErrorCode::Stale);
        assert_eq!((stored.get(), stored.version.get()), (head(), 7));
    }

    #[test]
    fn what_only_grows_never_falls_at_a_swap() {
        let now = head();
        let lower: [(&str, VolumeHead); 4] = [
            (
                "generation",
                VolumeHead {
                    generation: Generation(2),
                    ..now
                },
            ),
            (
                "epoch",
                VolumeHead {
                    epoch: Epoch(4),
                    ..now
                },
            ),
            (
                "log number",
                VolumeHead {
                    log_number: 1,
                    ..now
                },
            ),
            (
                "log start",
                VolumeHead {
                    log_start: 4096,
                    ..now
                },
            ),
        ];
        for (field, next) in lower {
            let (stored, outcome) = swapped(next, Ok(8));
            let failure = outcome.expect_err(field);
            assert_eq!(failure.code, ErrorCode::Internal);
            let message = failure.message;
            assert!(message.starts_with(&format!("the {field} of")), "{message}");
            assert_eq!((stored.get(), stored.version.get()), (now, 7), "{field}");
        }
        assert_eq!(swapped(now, Ok(8)).1, Ok(()), "the same again");
    }

    #[test]
    fn a_head_that_is_read_again_is_not_an_older_one() {
        let head = CatalogueHead {
            generation: Generation(3),
            owner: 1,
            log_number: 1,
            log_len: 1 << 20,
            log_start: 8192,
            pack: 5,
            pack_len: 4096,
            pack_capacity: 4096,
            entries: 6,
            compatible: 0,
        };
        let stored = StoredHead::new(Lineage::CATALOGUE, head, 7);
        let newer = CatalogueHead {
            generation: Generation(4),
            entries: 2,
            ..head
        };
        assert_eq!(stored.refresh(newer, 9), Ok(()));
        assert_eq!((stored.get(), stored.version.get()), (newer, 9));
        for older in [
            head,
            CatalogueHead {
                log_start: 4096,
                ..newer
            },
        ] {
            let failure = stored.refresh(older, 10).unwrap_err();
            assert_eq!(failure.code, ErrorCode::Damaged);
            assert!(
                failure.message.contains("is an old one"),
                "{}",
                failure.message
            );
        }
        assert_eq!(stored.get(), newer);
    }
}
