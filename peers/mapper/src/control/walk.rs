//! Two maps beside each other, page by page, beside what guests ask.
//!
//! Invariants
//! - A page at a time, and a bounded number of entries in one turn of the thread. One walk at a time ([`Parts::walking`]): who asks
//!   meanwhile waits.
//! - A walk holds the roots and nodes of maps while it waits for pages, and needs every page below them. Nothing deletes a page of
//!   a map whose lineage is there ([`Disk::delete`](crate::disk::Disk::delete)). A lineage that is removed meanwhile takes its pages with
//!   it: [`unless_removed`].
//! - A writer whose map is walked copies each node that it changes, as it does after a snapshot.

use std::ops::ControlFlow;
use std::rc::Rc;

use archipelago_protocol::ErrorCode;

use crate::catalogue::Item;
use crate::failure::{Failure, Outcome};
use crate::parts::Parts;
use crate::tree::{Comparison, PlaceNodes, SLOTS, Segment, Tree};

/// Segments that one turn looks at, and then to the end of an object: some 100 us of work.
const SEGMENTS_PER_TURN: usize = 4096;

/// Calls `see` with the segments of all places in which `map` and `base` may differ, in their order, from the object of block `start` on,
/// until it breaks.
pub(super) async fn walk(
    parts: &Rc<Parts>,
    map: &Tree,
    base: &Tree,
    start: u64,
    mut see: impl FnMut(&Segment) -> ControlFlow<()>,
) -> Outcome<()> {
    let size = map.object_size();
    let first = start / size.blocks();
    let mut comparison = Comparison::new(map, base).from(first);
    let mut left = SEGMENTS_PER_TURN;
    while let Some(place) = comparison.next_place() {
        parts.check_running()?;
        let mut nodes: PlaceNodes = place.nodes();
        for (node, missing) in nodes.iter_mut().zip(place.missing()) {
            if let Some(missing) = missing {
                *node = Some(parts.pool.read_page(missing, size).await?);
                left = SEGMENTS_PER_TURN;
            }
        }
        if !place.is_leaf() {
            give_way(parts, &mut left, SLOTS).await?;
            comparison.descend(&place, &nodes);
            continue;
        }
        for slot in (0..SLOTS).filter(|slot| place.object(*slot) >= first) {
            let mut seen = 0;
            let mut wanted = ControlFlow::Continue(());
            place.segments(&nodes, slot, size.blocks(), |segment| {
                seen += 1;
                if wanted.is_continue() {
                    wanted = see(&segment);
                }
            });
            if wanted.is_break() {
                return Ok(());
            }
            give_way(parts, &mut left, seen).await?;
        }
    }
    Ok(())
}

/// Has guests served in between, if `seen` segments more are the last of this turn.
async fn give_way(parts: &Rc<Parts>, left: &mut usize, seen: usize) -> Outcome<()> {
    *left = left.saturating_sub(seen);
    if *left == 0 {
        *left = SEGMENTS_PER_TURN;
        parts.pool.disk.give_way().await;
        parts.check_running()?;
    }
    Ok(())
}

/// What came of a walk over the map of `item`.
///
/// # Errors
/// [`ErrorCode::NotFound`] in place of any failure, if `item` was removed meanwhile: its pages went with it.
pub(super) fn unless_removed<T>(parts: &Parts, item: &Item, outcome: Outcome<T>) -> Outcome<T> {
    let names = parts.catalogue.names();
    let now = names.get(item.lineage);
    if outcome.is_err() && now.is_none_or(|now| now.name.is_none()) {
        let why = format!("{} was removed", item.lineage);
        return Err(Failure::new(ErrorCode::NotFound, why));
    }
    outcome
}
