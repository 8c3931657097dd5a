//! Pages of a tree that are not stored yet.
//!
//! Children come before their parents, one page behind the other, to be appended to a pack in one go. Nodes are marked
//! as stored only when the pages are durable.

use std::rc::Rc;

use archipelago_protocol::Lineage;

use super::Tree;
use super::cache::Cache;
use super::node::{Body, Child, Node};
use super::page::{encode_inner, encode_leaf};
use super::place::{PageRef, Root};
use crate::format::sealed_crc;

/// Pages begin at multiples of this.
const PAGE_ALIGN: usize = 64;

/// Pages that are to be appended, and the nodes that they hold.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// To be written at the offset that they were made for.
    pub(crate) bytes: Vec<u8>,
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
    /// Makes the pages that are not stored yet, for `offset` of `pack`, and tells where the root will be.
    pub(crate) fn pages(&self, lineage: Lineage, pack: u64, offset: u64) -> (Written, Root) {
        let mut written = Written::default();
        let mut sink = Sink {
            lineage,
            pack,
            offset,
            written: &mut written,
        };
        let page = self.store(&self.root, self.level, &mut sink);
        (
            written,
            Root {
                page,
                level: self.level,
            },
        )
    }

    fn store(&self, child: &Child, level: u8, sink: &mut Sink<'_>) -> Option<PageRef> {
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

struct Sink<'a> {
    lineage: Lineage,
    pack: u64,
    offset: u64,
    written: &'a mut Written,
}

impl Sink<'_> {
    fn put(&mut self, page: &[u8]) -> PageRef {
        let bytes = &mut self.written.bytes;
        let at = bytes.len();
        bytes.extend_from_slice(page);
        bytes.resize(bytes.len().next_multiple_of(PAGE_ALIGN), 0);
        PageRef {
            lineage: self.lineage,
            pack: self.pack,
            offset: self.offset + at as u64,
            len: u32::try_from(page.len()).expect("structures are far below 4 GiB"),
            crc: sealed_crc(page),
        }
    }
}
