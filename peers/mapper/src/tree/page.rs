//! Pages: nodes as they are stored. Layout: `docs/map-format.md`, "Map pages".
//!
//! Body behind the envelope: level u8, object size log2 u8, 0 u16, entries u32, layers u32, 0 u32; then
//! * leaf: layers of 40 bytes (lineage, epoch u64, displacement u64, kind u32, 0 u32), then for each object with runs:
//!   index u16, runs u16, runs of 8 bytes (start u16, blocks u16, layer u32);
//! * inner: children of 48 bytes (index u16, 0 u16, length u32, crc u32, 0 u32, lineage, pack u64, offset u64).

use std::cell::OnceCell;
use std::rc::Rc;

use archipelago_protocol::{Epoch, ObjectSize};

use super::leaf::{Leaf, Run};
use super::node::{Body, Child, Node};
use super::place::{FAN_OUT, FAN_SLOTS, LEAF_OBJECTS, LEAF_SLOTS, Layer, PageRef};
use crate::format::{Problem, Reader, Writer, sealed_crc};

const MAGIC: [u8; 8] = *b"ARCHPAGE";
/// Kind of a layer: blocks stored at their own place in (lineage, epoch). Others (content-addressed) are reserved.
const KIND_DATA: u32 = 1;

/// The page of a leaf.
pub(super) fn encode_leaf(
    lineage: archipelago_protocol::Lineage,
    size: ObjectSize,
    leaf: &Leaf,
) -> Vec<u8> {
    // Only layers that a run still uses.
    let mut renumbered: Vec<Option<u32>> = vec![None; leaf.layers().len()];
    let mut used = Vec::new();
    let mut objects = 0;
    for object in 0..LEAF_SLOTS {
        objects += u32::from(!leaf.runs(object).is_empty());
        for run in leaf.runs(object) {
            renumbered[run.layer as usize].get_or_insert_with(|| {
                used.push(leaf.layer(run));
                u32::try_from(used.len() - 1).expect("not more than runs")
            });
        }
    }
    let mut page = head(
        lineage,
        size,
        0,
        objects,
        u32::try_from(used.len()).expect("not more than runs"),
    );
    for layer in used {
        page.lineage(layer.lineage);
        page.u64(layer.epoch.0);
        page.u64(0);
        page.u32(KIND_DATA);
        page.u32(0);
    }
    for object in 0..LEAF_SLOTS {
        let runs = leaf.runs(object);
        if runs.is_empty() {
            continue;
        }
        page.u16(u16::try_from(object).expect("below 512"));
        page.u16(u16::try_from(runs.len()).expect("at most 8192 blocks"));
        for run in runs {
            page.u16(run.start);
            page.u16(run.blocks);
            page.u32(renumbered[run.layer as usize].expect("numbered above"));
        }
    }
    page.seal()
}

/// The page of an inner node with these children.
pub(super) fn encode_inner(
    lineage: archipelago_protocol::Lineage,
    size: ObjectSize,
    level: u8,
    children: &[(usize, PageRef)],
) -> Vec<u8> {
    let mut page = head(
        lineage,
        size,
        level,
        u32::try_from(children.len()).expect("at most 256"),
        0,
    );
    for (index, child) in children {
        page.u16(u16::try_from(*index).expect("below 256"));
        page.u16(0);
        write_ref(&mut page, child);
    }
    page.seal()
}

fn head(
    lineage: archipelago_protocol::Lineage,
    size: ObjectSize,
    level: u8,
    entries: u32,
    layers: u32,
) -> Writer {
    let mut page = Writer::sealed(MAGIC, lineage);
    page.u8(level);
    page.u8(size.log2());
    page.u16(0);
    page.u32(entries);
    page.u32(layers);
    page.u32(0);
    page
}

/// Bytes of a page reference.
pub(crate) const REF_LEN: usize = 4 + 4 + 4 + 16 + 8 + 8;
const _: () = assert!(REF_LEN == 44);

/// Length, crc, 0, lineage, pack, offset.
pub(crate) fn write_ref(to: &mut Writer, page: &PageRef) {
    to.u32(page.len);
    to.u32(page.crc);
    to.u32(0);
    to.lineage(page.lineage);
    to.u64(page.pack);
    to.u64(page.offset);
}

pub(crate) fn read_ref(from: &mut Reader<'_>) -> Option<PageRef> {
    let (len, crc) = (from.u32()?, from.u32()?);
    from.zeros(4)?;
    Some(PageRef {
        len,
        crc,
        lineage: from.lineage()?,
        pack: from.u64()?,
        offset: from.u64()?,
    })
}

/// The node in the bytes that `page` refers to.
pub(crate) fn decode(
    page: &PageRef,
    level: u8,
    size: ObjectSize,
    bytes: &[u8],
) -> Result<Rc<Node>, Problem> {
    let opened = Reader::open(MAGIC, Some(page.lineage), bytes)?;
    let mut fields = opened.fields;
    if opened.len != bytes.len() || sealed_crc(bytes) != page.crc {
        return Err(Problem::Checksum);
    }
    let short = || Problem::Field("page end");
    let found = fields.u8().ok_or_else(short)?;
    if found != level {
        return Err(Problem::Field("level"));
    }
    if fields.u8() != Some(size.log2()) {
        return Err(Problem::Field("object size"));
    }
    let reserved = || Problem::Field("reserved");
    fields.zeros(2).ok_or_else(reserved)?;
    let entries = fields.u32().ok_or_else(short)?;
    let layers = fields.u32().ok_or_else(short)?;
    fields.zeros(4).ok_or_else(reserved)?;
    let body = match level {
        0 => Body::Leaf(decode_leaf(&mut fields, entries, layers, size)?),
        _ => Body::Inner(decode_inner(&mut fields, entries)?),
    };
    if !fields.rest().is_empty() {
        return Err(Problem::Field("page end"));
    }
    Ok(Rc::new(Node {
        page: OnceCell::from(*page),
        body,
    }))
}

fn decode_leaf(
    fields: &mut Reader<'_>,
    entries: u32,
    layers: u32,
    size: ObjectSize,
) -> Result<Leaf, Problem> {
    let short = || Problem::Field("page end");
    let mut table = Vec::new();
    for _ in 0..layers {
        let lineage = fields.lineage().ok_or_else(short)?;
        let epoch = Epoch(fields.u64().ok_or_else(short)?);
        if fields.u64() != Some(0) {
            return Err(Problem::Field("displacement"));
        }
        if fields.u32() != Some(KIND_DATA) || fields.zeros(4).is_none() {
            return Err(Problem::Field("layer kind"));
        }
        table.push(Layer { lineage, epoch });
    }
    let mut objects = vec![Vec::new(); LEAF_SLOTS];
    let mut next = 0;
    for _ in 0..entries {
        let index = fields.u16().ok_or_else(short)?;
        if index < next || u64::from(index) >= LEAF_OBJECTS {
            return Err(Problem::Field("object index"));
        }
        next = index + 1;
        let count = fields.u16().ok_or_else(short)?;
        let runs: &mut Vec<Run> = &mut objects[usize::from(index)];
        let mut end = 0;
        for _ in 0..count {
            let (start, blocks) = (
                fields.u16().ok_or_else(short)?,
                fields.u16().ok_or_else(short)?,
            );
            let layer = fields.u32().ok_or_else(short)?;
            let joined = runs
                .last()
                .is_some_and(|last| last.end() == start && last.layer == layer);
            let run_end = u32::from(start) + u32::from(blocks);
            if start < end || blocks == 0 || u64::from(run_end) > size.blocks() || joined {
                return Err(Problem::Field("run"));
            }
            if layer >= layers {
                return Err(Problem::Field("run's layer"));
            }
            end = start + blocks;
            runs.push(Run {
                start,
                blocks,
                layer,
            });
        }
    }
    Ok(Leaf::from_parts(table, objects))
}

fn decode_inner(fields: &mut Reader<'_>, entries: u32) -> Result<Vec<Child>, Problem> {
    let short = || Problem::Field("page end");
    let mut children = vec![Child::Empty; FAN_SLOTS];
    let mut next = 0;
    for _ in 0..entries {
        let index = fields.u16().ok_or_else(short)?;
        fields.zeros(2).ok_or(Problem::Field("reserved"))?;
        if index < next || u64::from(index) >= FAN_OUT {
            return Err(Problem::Field("child index"));
        }
        next = index + 1;
        children[usize::from(index)] = Child::Stored(read_ref(fields).ok_or_else(short)?);
    }
    Ok(children)
}

/// The page of a node as it was decoded, with an edit of a leaf: blocks of an object put into a layer of `lineage`.
#[cfg(feature = "fuzzing")]
pub(crate) fn reencode(
    lineage: archipelago_protocol::Lineage,
    size: ObjectSize,
    level: u8,
    node: &Node,
    edit: Option<(usize, u16, u16)>,
) -> Vec<u8> {
    match &node.body {
        Body::Leaf(leaf) => {
            let mut leaf = leaf.clone();
            if let Some((object, start, end)) = edit {
                let epoch = Epoch(7);
                leaf.set(object, start, end, Some(Layer { lineage, epoch }));
                let (layer, run_end) = leaf.lookup(object, start);
                assert_eq!(layer, Some(Layer { lineage, epoch }));
                assert!(run_end.is_some_and(|found| found >= end));
            }
            encode_leaf(lineage, size, &leaf)
        }
        Body::Inner(children) => {
            let stored = children
                .iter()
                .enumerate()
                .filter_map(|(index, child)| match child {
                    Child::Stored(page) => Some((index, *page)),
                    Child::Empty | Child::Node(_) => None,
                });
            encode_inner(lineage, size, level, &stored.collect::<Vec<_>>())
        }
    }
}
