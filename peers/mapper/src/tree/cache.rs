//! Stored nodes in memory, shared by all volumes: clones find their parents' pages here.
//!
//! Eviction goes round: a node that was used since the last round stays for another one, and so does a node that
//! somebody holds (a task that is loading its way down).

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::node::{Body, Child, Node};
use super::place::{LEAF_SLOTS, PageRef};

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
        Body::Inner(children) => children.len() * size_of::<Child>(),
        Body::Leaf(leaf) => {
            let runs: usize = (0..LEAF_SLOTS).map(|object| leaf.runs(object).len()).sum();
            LEAF_SLOTS * 24 + runs * 8 + leaf.layers().len() * 24 + 64
        }
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::{Epoch, Lineage};

    use super::super::leaf::Leaf;
    use super::super::place::Layer;
    use super::*;

    /// Tables of an empty leaf.
    const EMPTY: usize = 512 * 24 + 64;

    fn page(number: u64) -> PageRef {
        PageRef {
            lineage: Lineage(1),
            pack: 1,
            offset: number * 64,
            len: 56,
            crc: 0,
        }
    }

    fn node(body: Body) -> Rc<Node> {
        Rc::new(Node {
            page: page(0).into(),
            body,
        })
    }

    fn leaf() -> Rc<Node> {
        node(Body::Leaf(Leaf::new()))
    }

    fn kept(cache: &Cache, pages: &[u64]) -> Vec<bool> {
        let is_kept = |number: &u64| cache.nodes.contains_key(&page(*number));
        pages.iter().map(is_kept).collect()
    }

    #[test]
    fn a_node_weighs_what_its_tables_and_runs_take() {
        let mut full = Leaf::new();
        for (object, epoch) in [(0, 1), (0, 2), (511, 2)] {
            let layer = Layer {
                lineage: Lineage(1),
                epoch: Epoch(epoch),
            };
            let start = u16::try_from(epoch).unwrap() * 4;
            full.set(object, start, start + 4, Some(layer));
        }
        assert_eq!(weight(&leaf()), EMPTY);
        assert_eq!(weight(&node(Body::Leaf(full))), EMPTY + 3 * 8 + 2 * 24);
        let children = vec![Child::Empty; 256];
        let inner = weight(&node(Body::Inner(children)));
        assert_eq!(inner, 256 * size_of::<Child>());
    }

    #[test]
    fn what_was_used_since_the_last_round_stays_for_another() {
        let mut cache = Cache::new(2 * EMPTY);
        cache.insert(page(1), leaf());
        cache.insert(page(2), leaf());
        assert_eq!(cache.bytes(), 2 * EMPTY, "as many as fit");
        cache.insert(page(2), leaf());
        assert_eq!(cache.bytes(), 2 * EMPTY, "once");
        cache.insert(page(3), leaf());
        assert_eq!(kept(&cache, &[1, 2, 3]), [false, true, true]);
        assert!(cache.get(&page(2)).is_some() && cache.get(&page(1)).is_none());
        cache.insert(page(4), leaf());
        assert_eq!(kept(&cache, &[2, 3, 4]), [true, false, true]);
        assert_eq!(cache.bytes(), 2 * EMPTY);
    }

    #[test]
    fn what_somebody_holds_stays_until_it_is_released() {
        let mut cache = Cache::new(0);
        let held: Vec<_> = (1..=3).map(|_| leaf()).collect();
        for (number, node) in (1..).zip(&held) {
            cache.insert(page(number), Rc::clone(node));
        }
        assert_eq!(kept(&cache, &[1, 2, 3]), [true; 3]);
        assert!((1..=3).all(|number| cache.get(&page(number)).is_some()));
        drop(held);
        cache.insert(page(4), leaf());
        assert_eq!(kept(&cache, &[1, 2, 3, 4]), [false; 4]);
        assert_eq!(cache.bytes(), 0);
    }
}
