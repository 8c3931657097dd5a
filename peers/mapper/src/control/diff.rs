//! Where the map of a volume, snapshot or image differs from that of a snapshot or image.
//!
//! A block that both have in the same layer is the same: what a frozen map has is never written again.

use std::ops::ControlFlow;
use std::rc::Rc;

use archipelago_protocol::diff::{ChangedRange, DiffPage, RANGES_MAX};
use archipelago_protocol::{BLOCK_SIZE, ErrorCode, Name};

use super::named::find;
use super::walk::{unless_removed, walk};
use crate::catalogue::Item;
use crate::failure::{Failure, Outcome};
use crate::parts::Parts;
use crate::session::current_tree;
use crate::tree::{Range, Root, Tree};

/// The first ranges from byte `start` on in which `name` differs from `from`, or from zeros; at most `limit`.
///
/// # Errors
/// [`ErrorCode::Invalid`]: `from` is written, or has objects of another size. [`ErrorCode::InUse`]: the last session of the volume has not
/// ended.
pub(super) async fn diff(
    parts: &Rc<Parts>,
    name: &Name,
    from: Option<&Name>,
    start: u64,
    limit: usize,
) -> Outcome<DiffPage> {
    let (item, base) = {
        let names = parts.catalogue.names();
        let item = find(&names, name)?;
        let base = from.map(|from| find(&names, from)).transpose()?;
        (item, base)
    };
    let invalid = |why: String| Err(Failure::new(ErrorCode::Invalid, why));
    let base = match (&base, from) {
        (Some(base), Some(from)) if !base.is_frozen() => {
            return invalid(format!("`{from}` is neither a snapshot nor an image"));
        }
        (Some(base), Some(from)) if base.object_size != item.object_size => {
            return invalid(format!(
                "`{from}` has objects of another size than `{name}`"
            ));
        }
        (Some(base), _) => base.root,
        (None, _) => Root::default(),
    };
    let _one_at_a_time = parts.walking.acquire().await;
    let base = Tree::new(base, item.object_size);
    let found = compare(parts, &item, &base, start, limit.clamp(1, RANGES_MAX)).await;
    unless_removed(parts, &item, found)
}

async fn compare(
    parts: &Rc<Parts>,
    item: &Item,
    base: &Tree,
    start: u64,
    limit: usize,
) -> Outcome<DiffPage> {
    let map = current_tree(parts, item).await?;
    let window = Range {
        start: start / BLOCK_SIZE,
        end: item.size.div_ceil(BLOCK_SIZE),
    };
    // In blocks: what is zeros now, and where.
    let mut found: Vec<(bool, Range)> = Vec::new();
    let mut next = None;
    walk(parts, &map, base, window.start, |segment| {
        let range = segment.range.cut(window);
        if segment.range.start >= window.end {
            return ControlFlow::Break(());
        }
        if range.is_empty() || segment.layer == segment.base {
            return ControlFlow::Continue(());
        }
        let zero = segment.layer.is_none();
        let is_full = found.len() == limit;
        match found.last_mut() {
            Some((of, last)) if *of == zero && last.end == range.start => last.end = range.end,
            _ if is_full => {
                next = Some(range.start * BLOCK_SIZE);
                return ControlFlow::Break(());
            }
            _ => found.push((zero, range)),
        }
        ControlFlow::Continue(())
    })
    .await?;
    let ranges = found.into_iter().map(|(zero, range)| {
        let offset = range.start * BLOCK_SIZE;
        let len = (range.end * BLOCK_SIZE).min(item.size) - offset;
        ChangedRange { offset, len, zero }
    });
    Ok(DiffPage {
        ranges: ranges.collect(),
        next,
    })
}
