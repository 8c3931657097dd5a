//! Heads: the one place from which a volume, or the catalogue, is found. Changed by compare-and-swap only.
//!
//! Layouts: `docs/map-format.md`, "Volume head" and "Catalogue head". Shorter than 4032 bytes by far.
//!
//! Invariant: what a head counts (generation, epochs, log positions) never falls from one head of a lineage to the next
//! ([`StoredHead`] refuses to write such a head).

mod catalogue;
mod stored;
mod volume;

use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{Generation, Lineage};

use crate::disk::name_of;
use crate::failure::Failure;
use crate::format::{Problem, Reader, Writer};
use crate::log::{LOG_LEN_MAX, POSITION_MAX};
use crate::tree::{LEVEL_MAX, REF_LEN, Root, read_ref, write_ref};

pub(crate) use catalogue::{CatalogueHead, pack_count};
pub(crate) use stored::StoredHead;
pub(crate) use volume::VolumeHead;

/// Highest generation of a head that may be read. A volume's session after an unclean end begins with epoch
/// `generation << 32`, and the generation after this one must still have one.
const GENERATION_MAX: Generation = Generation(u32::MAX as u64 - 1);

/// What heads have in common.
pub(crate) trait Head: Copy {
    /// The head of `lineage` as bytes.
    fn to_bytes(&self, lineage: Lineage) -> Vec<u8>;

    /// Name, value before and value now of each field that only grows.
    fn growing(before: &Self, now: &Self) -> impl Iterator<Item = (&'static str, u64, u64)>;
}

/// The first field that is less in `now` than it was in `before`.
fn fallen<H: Head>(before: &H, now: &H) -> Option<(&'static str, u64, u64)> {
    H::growing(before, now).find(|(_, before, now)| now < before)
}

fn word(fields: &mut Reader<'_>) -> Result<u64, Problem> {
    fields.u64().ok_or(Problem::Field("head end"))
}

fn check_log(len: u64, start: u64) -> Result<(), Problem> {
    let unit = crate::log::UNIT as u64;
    let possible = len > 0 && len.is_multiple_of(unit) && len <= LOG_LEN_MAX;
    if !possible || !start.is_multiple_of(unit) || start > POSITION_MAX {
        return Err(Problem::Field("log"));
    }
    Ok(())
}

fn unreadable(lineage: Lineage, problem: Problem) -> Failure {
    Failure::unreadable(&name_of(ObjectId::head(lineage)), problem)
}

/// Bytes of a root: level u8, present u8, 0 u16, 0 u32, page reference.
pub(crate) const ROOT_LEN: usize = 8 + REF_LEN;
const _: () = assert!(ROOT_LEN == 52);

pub(crate) fn write_root(to: &mut Writer, root: Root) {
    to.u8(root.level);
    to.u8(u8::from(root.page.is_some()));
    to.u16(0);
    to.u32(0);
    match &root.page {
        Some(page) => write_ref(to, page),
        None => to.bytes(&[0; REF_LEN]),
    }
}

pub(crate) fn read_root(from: &mut Reader<'_>) -> Result<Root, Problem> {
    let bad = || Problem::Field("root");
    let level = from
        .u8()
        .filter(|level| *level <= LEVEL_MAX)
        .ok_or_else(bad)?;
    let present = from.u8().ok_or_else(bad)?;
    from.zeros(6).ok_or_else(bad)?;
    let page = match present {
        0 => from.zeros(REF_LEN).map(|()| None),
        1 => read_ref(from).map(Some),
        _ => None,
    };
    let page = page.ok_or_else(bad)?;
    Ok(Root { page, level })
}
