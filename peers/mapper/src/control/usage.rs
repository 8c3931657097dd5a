//! What a volume, snapshot or image takes of its pool: its map and those of its row are compared, page by page.
//!
//! A volume and its snapshots are a row in the order of their epochs. The maps that have a block of the row are neighbours in it
//! ([`reclaim`](super::reclaim) says why), so a map has alone what the next newer one has not, and what is younger than the next older
//! snapshot.
//!
//! Invariant: nothing is written, and nothing is recovered.

use std::ops::ControlFlow;
use std::rc::Rc;

use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::usage::{SnapshotUsage, Usage};
use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode, Lineage};

use super::walk::{unless_removed, walk};
use crate::catalogue::{Item, Names};
use crate::failure::{Failure, Outcome};
use crate::parts::Parts;
use crate::session::current_tree;
use crate::tree::{Root, Tree};

/// The maps that may share blocks of one lineage.
#[derive(Debug)]
struct Row {
    /// The volume or image: whose blocks they are.
    owner: Item,
    /// What the owner was cloned from.
    source: Option<Item>,
    /// Snapshots that stay, the oldest first.
    snapshots: Vec<Item>,
}

impl Row {
    /// The row of `item`.
    fn of(names: &Names, item: &Item) -> Outcome<Row> {
        let unknown = || {
            let why = format!("the sources of {} are not in a row", item.lineage);
            Failure::new(ErrorCode::Unsupported, why)
        };
        let source_of = |item: &Item| match item.sources[..] {
            [] => Ok(None),
            [source] => names.get(source).cloned().map(Some).ok_or_else(unknown),
            _ => Err(unknown()),
        };
        let owner = match item.kind {
            Kind::Snapshot => source_of(item)?.ok_or_else(unknown)?,
            Kind::Volume | Kind::Image | Kind::Importing => item.clone(),
        };
        let mut snapshots = Vec::new();
        for child in names.children(owner.lineage) {
            if child.kind == Kind::Snapshot && !names.is_orphan(child.lineage) {
                if child.sources != [owner.lineage] {
                    return Err(unknown());
                }
                snapshots.push(child.clone());
            }
        }
        snapshots.sort_by_key(|snapshot| snapshot.epoch);
        Ok(Row {
            source: source_of(&owner)?,
            owner,
            snapshots,
        })
    }
}

/// What a comparison of two maps counts, in blocks.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// In the places in which they differ: what the map has, and what the base has.
    mapped: u64,
    base_mapped: u64,
    /// Blocks of the wanted lineage that the map has, and the base has not.
    own: u64,
    /// Of these, what no older snapshot has.
    alone: u64,
}

/// What is alone: of this lineage, and of an epoch after this one.
#[derive(Debug, Clone, Copy)]
struct Alone {
    lineage: Lineage,
    since: Option<Epoch>,
}

/// What `name`'s item takes.
///
/// # Errors
/// [`ErrorCode::InUse`]: the last session of its volume has not ended. [`ErrorCode::NotFound`]: it was removed meanwhile.
pub(super) async fn usage(parts: &Rc<Parts>, item: &Item) -> Outcome<Usage> {
    let _one_at_a_time = parts.walking.acquire().await;
    let counted = count_row(parts, item).await;
    unless_removed(parts, item, counted)
}

async fn count_row(parts: &Rc<Parts>, item: &Item) -> Outcome<Usage> {
    let row = Row::of(&parts.catalogue.names(), item)?;
    let lineage = row.owner.lineage;
    let size = row.owner.object_size;
    let nothing = Tree::new(Root::default(), size);
    let is_cloned = |of: &Item| {
        let names = parts.catalogue.names();
        names.has_children(of.lineage)
    };
    let (mut newer, mut newer_mapped) = match &row.source {
        Some(source) => {
            let tree = Tree::new(source.root, size);
            let alone = Alone {
                lineage,
                since: None,
            };
            let count = compare(parts, &tree, &nothing, alone).await?;
            (tree, count.mapped)
        }
        None => (nothing, 0),
    };
    let mut whole = Usage {
        provisioned: item.size,
        ..Usage::default()
    };
    let mut members: Vec<(&Item, Option<Epoch>)> = Vec::new();
    let mut since = None;
    for snapshot in &row.snapshots {
        members.push((snapshot, since));
        since = Some(snapshot.epoch);
    }
    if row.owner.name.is_some() || row.owner.is_frozen() {
        members.push((&row.owner, since));
    }
    let mut stored = 0;
    // The newest first: each is compared with the next newer one.
    for (member, since) in members.into_iter().rev() {
        let tree = current_tree(parts, member).await?;
        let count = compare(parts, &tree, &newer, Alone { lineage, since }).await?;
        let mapped = newer_mapped + count.mapped - count.base_mapped;
        stored += count.own;
        // Clones keep all of what they were made from.
        let keeps = member.is_frozen() && is_cloned(member);
        let unique = if keeps { 0 } else { count.alone };
        if member.lineage == item.lineage {
            whole.mapped = mapped * BLOCK_SIZE;
            whole.unique = unique * BLOCK_SIZE;
            whole.shared = whole.mapped - whole.unique;
        }
        if item.lineage == lineage
            && member.kind == Kind::Snapshot
            && let Some(name) = &member.name
        {
            whole.snapshots.push(SnapshotUsage {
                name: name.clone(),
                mapped: mapped * BLOCK_SIZE,
                unique: unique * BLOCK_SIZE,
            });
        }
        (newer, newer_mapped) = (tree, mapped);
    }
    whole.snapshots.reverse();
    if item.lineage == lineage || row.owner.name.is_none() {
        whole.stored = Some(stored * BLOCK_SIZE);
    }
    Ok(whole)
}

/// Counts where `map` and `base` differ.
async fn compare(parts: &Rc<Parts>, map: &Tree, base: &Tree, alone: Alone) -> Outcome<Count> {
    let mut count = Count::default();
    walk(parts, map, base, 0, |segment| {
        let blocks = segment.range.end - segment.range.start;
        count.mapped += if segment.layer.is_some() { blocks } else { 0 };
        count.base_mapped += if segment.base.is_some() { blocks } else { 0 };
        let own = segment.layer.filter(|layer| layer.lineage == alone.lineage);
        if let Some(layer) = own
            && segment.layer != segment.base
        {
            count.own += blocks;
            let is_alone = alone.since.is_none_or(|since| layer.epoch > since);
            count.alone += if is_alone { blocks } else { 0 };
        }
        ControlFlow::Continue(())
    })
    .await?;
    Ok(count)
}
