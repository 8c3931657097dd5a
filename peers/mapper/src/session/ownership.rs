//! Who owns a volume: the incarnation that its head names, until a clean end or the end of the incarnation.
//!
//! Invariants
//! - Nothing but the end of an incarnation takes a volume from it. Whoever cannot know takes nothing.
//! - A volume of an incarnation that has ended is recovered by one node: the one whose swap of the head has put it in the place of the
//!   owner, before it writes anything. The swap raises the generation, so that the log and the packs of another node that was
//!   recovering it are not its own.
//! - Where a lock of the pool keeps other nodes away, the lock is enough, and nothing is swapped.

use archipelago_protocol::{ErrorCode, Generation, Lineage};

use super::head::read_head;
use crate::catalogue::Item;
use crate::failure::{Failure, Outcome};
use crate::head::{StoredHead, VolumeHead};
use crate::parts::Parts;

/// # Errors
/// [`ErrorCode::InUse`]: another node has the volume, or is recovering it.
pub(crate) async fn check_owner(parts: &Parts, item: &Item) -> Outcome<()> {
    if !parts.catalogue.has_others() || item.is_frozen() {
        return Ok(());
    }
    match read_head(parts, item).await? {
        Some(head) => check_free(parts, item, &head.get()).await,
        None => Ok(()),
    }
}

/// The head was read before: its owner had begun by then, so that an owner which is not listed now has ended.
async fn check_free(parts: &Parts, item: &Item, head: &VolumeHead) -> Outcome<()> {
    let ours = head.owner == parts.pool.config.owner;
    if head.clean || ours || !parts.catalogue.is_live(head.owner).await? {
        return Ok(());
    }
    Err(in_use(parts, item, head.owner))
}

fn in_use(parts: &Parts, item: &Item, owner: u128) -> Failure {
    let names = parts.catalogue.names();
    let node = names
        .incarnations()
        .node(owner)
        .filter(|name| !name.is_empty());
    let node = node.unwrap_or("another node");
    let what = match &item.name {
        Some(name) => format!("`{name}`"),
        None => item.lineage.to_string(),
    };
    Failure::new(ErrorCode::InUse, format!("{what} is in use on {node}"))
}

/// Takes a volume that did not end cleanly from the incarnation that had it, if that has ended.
pub(super) async fn take_over(
    parts: &Parts,
    item: &Item,
    stored: &StoredHead<VolumeHead>,
) -> Outcome<()> {
    let head = stored.get();
    let owner = parts.pool.config.owner;
    if head.clean || head.owner == owner || !parts.pool.config.sharing.is_shared() {
        return Ok(());
    }
    check_free(parts, item, &head).await?;
    let taken = VolumeHead {
        generation: Generation(head.generation.0 + 1),
        owner,
        takeovers: head.takeovers + 1,
        ..head
    };
    let swapped = stored.swap(&parts.pool.disk, taken).await;
    lost_race(parts, item, swapped).await
}

/// What is missing may have been removed by another node while this one was at work: then it is no damage.
pub(super) async fn unless_removed<T>(
    parts: &Parts,
    lineage: Lineage,
    outcome: Outcome<T>,
) -> Outcome<T> {
    let damaged = outcome
        .as_ref()
        .is_err_and(|failure| failure.code == ErrorCode::Damaged);
    if damaged && parts.catalogue.has_others() {
        parts.catalogue.ready().await?;
        let names = parts.catalogue.names();
        if names.get(lineage).is_none_or(|item| item.name.is_none()) {
            let why = format!("{lineage} was removed by another node");
            return Err(Failure::new(ErrorCode::NotFound, why));
        }
    }
    outcome
}

/// What it means that a head was swapped by somebody else: another node has the volume, if there may be one.
pub(super) async fn lost_race<T>(parts: &Parts, item: &Item, outcome: Outcome<T>) -> Outcome<T> {
    match &outcome {
        Err(failure)
            if failure.code == ErrorCode::Stale && parts.pool.config.sharing.is_shared() =>
        {
            if let Some(head) = read_head(parts, item).await? {
                check_free(parts, item, &head.get()).await?;
            }
            // It had it, and has closed it since.
            Err(in_use(parts, item, 0))
        }
        _ => outcome,
    }
}
