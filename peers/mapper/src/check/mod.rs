//! What is damaged, missing or leaked in a pool: a walk over everything that heads and catalogue name.
//!
//! It reads from the pool, never from memory, through the functions that serve: what they refuse, the check reports, with
//! the same words. It runs in a mapper that was never started (offline) or in one that serves (online).
//!
//! Invariants
//! - Nothing is written without `repair`; the catalogue's generation stays.
//! - What is checked together is read together: the catalogue under its lock, a volume's head and log under the volume's
//!   locks. Pages and data never change once they are named, so the walk over them needs no lock.
//! - Objects are listed before the catalogue is read: what is made meanwhile is not taken for leaked. A finding of what is
//!   removed meanwhile is dropped.
//! - A leak is reported only if every map could be read: a damaged one might name it.
//!
//! | module | what |
//! |---|---|
//! | `catalogue` | its head, checkpoint, log |
//! | `entry` | heads and logs of volumes |
//! | `pages` | the walk over map pages |
//! | `tail` | what stands behind a log's end |
//! | `objects` | data that maps name, objects that nothing names |
//! | `repair` | what may be deleted |

mod catalogue;
mod entry;
mod objects;
mod pages;
mod repair;
mod tail;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use archipelago_protocol::check::{Finding, FindingKind, Report};
use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{ErrorCode, Lineage, Name, ObjectSize};
use rustc_hash::FxHashSet;

use crate::catalogue::Names;
use crate::failure::{Failure, Outcome};
use crate::parts::Parts;
use crate::tree::PageRef;

/// Blocks of one object that maps name, as bytes, in one stretch of it.
#[derive(Debug)]
struct Data {
    /// Of the first block.
    start: u64,
    /// Behind the last one.
    end: u64,
    object_size: ObjectSize,
    /// Whose map.
    entry: Lineage,
    needed_by: Option<Name>,
}

/// A check under way.
#[derive(Debug)]
struct Inspection {
    parts: Rc<Parts>,
    report: Report,
    /// The objects of the pool before anything was read.
    listed: BTreeSet<ObjectId>,
    /// What the catalogue held when it was read.
    names: Names,
    /// Pages that were read, and where in the map: shared ones are read once.
    pages: FxHashSet<(PageRef, u64)>,
    /// Packs and data that maps name, and all that the catalogue needs of its own.
    named: BTreeSet<ObjectId>,
    /// Data that maps name, by object and stretch.
    data: BTreeMap<(ObjectId, u64), Data>,
    /// Volumes whose unclean end, or open session, may know of more data and pages than can be read here.
    unsettled: BTreeSet<Lineage>,
}

/// Checks the pool.
///
/// # Errors
/// [`ErrorCode::InUse`] if a serving mapper is asked to repair; or a listing or deletion failed.
pub(crate) async fn run(parts: &Rc<Parts>, repair: bool) -> Outcome<Report> {
    if repair && !parts.catalogue.is_unread() {
        return Err(Failure::new(
            ErrorCode::InUse,
            "the pool is being served: repairs are made offline",
        ));
    }
    let mut inspection = Inspection {
        parts: Rc::clone(parts),
        report: Report {
            clean: true,
            ..Report::default()
        },
        listed: BTreeSet::new(),
        names: Names::default(),
        pages: FxHashSet::default(),
        named: BTreeSet::new(),
        data: BTreeMap::new(),
        unsettled: BTreeSet::new(),
    };
    inspection.list().await?;
    if inspection.read_catalogue().await {
        inspection.check_entries().await;
        inspection.check_data().await;
        let leaks = inspection.find_leaks().await?;
        if repair {
            inspection.repair(&leaks).await?;
        }
    }
    Ok(inspection.report)
}

impl Inspection {
    fn find(&mut self, kind: FindingKind, message: impl Into<String>, needed_by: Option<&Name>) {
        self.report.add(Finding {
            kind,
            message: message.into(),
            needed_by: needed_by.cloned(),
        });
    }

    /// A failure of the code that serves.
    fn failed(&mut self, failure: Failure, needed_by: Option<&Name>) {
        let kind = match failure.code {
            ErrorCode::NotFound => FindingKind::Missing,
            ErrorCode::UnsupportedFormat => FindingKind::Unsupported,
            _ => FindingKind::Damaged,
        };
        self.find(kind, failure.message, needed_by);
    }

    /// Whether a mapper serves this pool beside the check.
    fn is_online(&self) -> bool {
        !self.parts.catalogue.is_unread()
    }
}
