//! Stored nodes in memory, shared by all volumes: clones find their parents' pages here.
//!
//! Eviction goes round: a node that was used since the last round stays for another one, and so does a node that
//! somebody holds (a task that is loading its way down).

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::{Body, Node, PageRef};

#[derive(Debug)]
struct Kept {
    node: Rc<Node>,
    used: Cell<bool>,
    weight: usize,
}

/// Nodes by page.
#[derive(Debug)]
pub(crate) struct Cache {
    nodes: FxHashMap<PageRef, Kept>,
    round: VecDeque<PageRef>,
    bytes: usize,
    bytes_max: usize,
}

impl Cache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Cache {
            nodes: FxHashMap::default(),
            round: VecDeque::new(),
            bytes: 0,
            bytes_max,
        }
    }

    pub(crate) fn get(&self, page: &PageRef) -> Option<&Rc<Node>> {
        let kept = self.nodes.get(page)?;
        kept.used.set(true);
        Some(&kept.node)
    }

    pub(crate) fn insert(&mut self, page: PageRef, node: Rc<Node>) {
        let weight = weight(&node);
        let kept = Kept {
            node,
            used: Cell::new(true),
            weight,
        };
        if self.nodes.insert(page, kept).is_none() {
            self.round.push_back(page);
            self.bytes += weight;
        }
        self.evict();
    }

    fn evict(&mut self) {
        // Each node is looked at twice at most: once to clear its mark, once to go.
        let mut looks = 2 * self.round.len();
        while self.bytes > self.bytes_max && looks > 0 {
            looks -= 1;
            let Some(page) = self.round.pop_front() else {
                return;
            };
            let kept = &self.nodes[&page];
            if kept.used.take() || Rc::strong_count(&kept.node) > 1 {
                self.round.push_back(page);
                continue;
            }
            self.bytes -= kept.weight;
            self.nodes.remove(&page);
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// About what a node takes in memory.
fn weight(node: &Node) -> usize {
    match &node.body {
        Body::Inner(children) => children.len() * size_of::<super::Child>(),
        Body::Leaf(leaf) => {
            let runs: usize = (0..super::LEAF_SLOTS)
                .map(|object| leaf.runs(object).len())
                .sum();
            super::LEAF_SLOTS * 24 + runs * 8 + leaf.layers().len() * 24 + 64
        }
    }
}
