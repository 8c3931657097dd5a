//! Pages of a tree that are not stored yet.
//!
//! Children come before their parents, one page behind the other, to be appended to a pack in one go, and to further packs when
//! that one is full. Nodes are marked as stored only when the pages are durable.

use std::rc::Rc;

use archipelago_protocol::Lineage;
use archipelago_protocol::object::ObjectId;

use super::Tree;
use super::cache::Cache;
use super::node::{Body, Child, Node};
use super::page::{encode_inner, encode_leaf};
use super::place::{PackPlace, PageRef, Root};
use crate::format::sealed_crc;

/// Pages begin at multiples of this.
const PAGE_ALIGN: usize = 64;

/// Pages for one pack.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) pack: ObjectId,
    pub(crate) offset: u64,
    /// To be written there.
    pub(crate) bytes: Vec<u8>,
}

/// Pages that are to be appended, and the nodes that they hold.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// One for each pack.
    pub(crate) pieces: Vec<Piece>,
    pub(super) nodes: Vec<(Rc<Node>, PageRef)>,
}

impl Written {
    /// The pages are durable: their nodes are what is stored, and can be had from the cache.
    pub(crate) fn mark_stored(&self, cache: &mut Cache) {
        for (node, page) in &self.nodes {
            // Two trees that share a node may both have stored it; either page is right.
            if node.page.set(*page).is_ok() {
                cache.insert(*page, Rc::clone(node));
            }
        }
    }

    /// How many pages.
    pub(crate) fn count(&self) -> u64 {
        self.nodes.len() as u64
    }
}

impl Tree {
    /// Makes the pages that are not stored yet, for `place` and what follows: the pages, where the root will be, and the end of
    /// the pages.
    pub(crate) fn pages(&self, lineage: Lineage, place: PackPlace) -> (Written, Root, PackPlace) {
        let mut sink = Sink {
            lineage,
            next: place,
            written: Written::default(),
        };
        let page = self.store(&self.root, self.level, &mut sink);
        let level = self.level;
        (sink.written, Root { page, level }, sink.next)
    }

    fn store(&self, child: &Child, level: u8, sink: &mut Sink) -> Option<PageRef> {
        let node = match child {
            Child::Empty => return None,
            Child::Stored(page) => return Some(*page),
            Child::Node(node) => node,
        };
        if let Some(page) = node.page.get() {
            return Some(*page);
        }
        let bytes = match &node.body {
            Body::Leaf(leaf) => encode_leaf(sink.lineage, self.object_size, leaf),
            Body::Inner(children) => {
                let mut stored = Vec::new();
                for (index, child) in children.iter().enumerate() {
                    if let Some(page) = self.store(child, level - 1, sink) {
                        stored.push((index, page));
                    }
                }
                encode_inner(sink.lineage, self.object_size, level, &stored)
            }
        };
        let page = sink.put(&bytes);
        sink.written.nodes.push((Rc::clone(node), page));
        Some(page)
    }

    /// Releases nodes that are stored: the cache decides how long they stay in memory.
    pub(crate) fn release_stored(&mut self) {
        release(&mut self.root);
    }
}

fn release(child: &mut Child) {
    let Child::Node(node) = child else {
        return;
    };
    if let Some(page) = node.page.get() {
        *child = Child::Stored(*page);
        return;
    }
    // A node that another tree shares is left alone: that tree releases it, or it is copied when changed.
    if let Some(Node {
        body: Body::Inner(children),
        ..
    }) = Rc::get_mut(node)
    {
        children.iter_mut().for_each(release);
    }
}

struct Sink {
    lineage: Lineage,
    /// Of the next page.
    next: PackPlace,
    written: Written,
}

impl Sink {
    fn put(&mut self, page: &[u8]) -> PageRef {
        let len = page.len().next_multiple_of(PAGE_ALIGN);
        if self.next.offset > 0 && self.next.offset + len as u64 > self.next.len_max {
            self.next.number += 1;
            self.next.offset = 0;
        }
        let PackPlace { number, offset, .. } = self.next;
        let pack = ObjectId::pack(self.lineage, number);
        let pieces = &mut self.written.pieces;
        if pieces.last().is_none_or(|piece| piece.pack != pack) {
            let bytes = Vec::new();
            pieces.push(Piece {
                pack,
                offset,
                bytes,
            });
        }
        let bytes = &mut pieces.last_mut().expect("pushed if there was none").bytes;
        bytes.extend_from_slice(page);
        bytes.resize(bytes.len().next_multiple_of(PAGE_ALIGN), 0);
        self.next.offset += len as u64;
        PageRef {
            lineage: self.lineage,
            pack: number,
            offset,
            len: u32::try_from(page.len()).expect("structures are far below 4 GiB"),
            crc: sealed_crc(page),
        }
    }
}
