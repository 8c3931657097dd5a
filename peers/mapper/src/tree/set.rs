//! Changes to a tree.

use std::rc::Rc;

use super::Tree;
use super::cache::Cache;
use super::node::{Body, Child, Node};
use super::place::{FAN_OUT, LEAF_OBJECTS, Layer, Missing, Range, index, small};

/// Where a recursion is.
#[derive(Clone, Copy)]
struct Place {
    level: u8,
    /// First block under the node.
    first: u64,
    span: u64,
}

impl Place {
    fn all(self) -> Range {
        Range {
            start: self.first,
            end: self.first + self.span,
        }
    }

    /// The children that `range` touches.
    fn below(self, range: Range) -> impl Iterator<Item = (usize, Place)> {
        let span = self.span / FAN_OUT;
        let range = range.cut(self.all());
        let from = (range.start - self.first) / span;
        let to = (range.end - self.first).div_ceil(span);
        (from..to).map(move |child| {
            (
                index(child),
                Place {
                    level: self.level - 1,
                    first: self.first + child * span,
                    span,
                },
            )
        })
    }

    fn covered_by(self, range: Range) -> bool {
        range.start <= self.first && self.first + self.span <= range.end
    }
}

impl Tree {
    fn top(&self) -> Place {
        Place {
            level: self.level,
            first: 0,
            span: self.span(self.level),
        }
    }

    /// A page that has to be loaded before `range` can be set to `layer`.
    pub(crate) fn missing(
        &self,
        cache: &Cache,
        range: Range,
        layer: Option<Layer>,
    ) -> Option<Missing> {
        missing(&self.root, cache, self.top(), range, layer.is_none())
    }

    /// Puts `range` into `layer`, or makes it zeros. [`Tree::missing`] has said that nothing is missing.
    pub(crate) fn set(&mut self, cache: &Cache, range: Range, layer: Option<Layer>) {
        if range.is_empty() {
            return;
        }
        if layer.is_some() {
            self.grow(range.end);
        }
        let top = self.top();
        set(&mut self.root, cache, top, range, layer, self.object_blocks);
    }

    /// The parts of `range` that no layer of the same lineage and a newer epoch holds. Nothing may be missing.
    pub(crate) fn not_newer(&self, cache: &Cache, range: Range, layer: Layer) -> Vec<Range> {
        let mut parts: Vec<Range> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (found, end) = self
                .lookup(cache, at)
                .expect("the caller has loaded what is missing");
            let end = end.min(range.end);
            let newer = found
                .is_some_and(|found| found.lineage == layer.lineage && found.epoch > layer.epoch);
            match parts.last_mut() {
                _ if newer => {}
                Some(last) if last.end == at => last.end = end,
                _ => parts.push(Range { start: at, end }),
            }
            at = end;
        }
        parts
    }
}

fn missing(
    child: &Child,
    cache: &Cache,
    place: Place,
    range: Range,
    zero: bool,
) -> Option<Missing> {
    let range = range.cut(place.all());
    if range.is_empty() || zero && place.covered_by(range) {
        return None;
    }
    let node = match child {
        Child::Empty => return None,
        Child::Stored(page) => match cache.get(page) {
            Some(node) => node,
            None => {
                return Some(Missing {
                    page: *page,
                    level: place.level,
                });
            }
        },
        Child::Node(node) => node,
    };
    match &node.body {
        Body::Leaf(_) => None,
        Body::Inner(children) => place
            .below(range)
            .find_map(|(i, below)| missing(&children[i], cache, below, range, zero)),
    }
}

fn set(
    child: &mut Child,
    cache: &Cache,
    place: Place,
    range: Range,
    layer: Option<Layer>,
    object_blocks: u64,
) {
    let range = range.cut(place.all());
    if range.is_empty() {
        return;
    }
    if layer.is_none() && (place.covered_by(range) || matches!(child, Child::Empty)) {
        *child = Child::Empty;
        return;
    }
    let node = writable(child, cache, place.level);
    match &mut node.body {
        Body::Inner(children) => {
            for (i, below) in place.below(range) {
                set(&mut children[i], cache, below, range, layer, object_blocks);
            }
        }
        Body::Leaf(leaf) => {
            let mut at = range.start;
            while at < range.end {
                let object = at / object_blocks;
                let first = object * object_blocks;
                let end = range.end.min(first + object_blocks);
                leaf.set(
                    index(object % LEAF_OBJECTS),
                    small(at - first),
                    small(end - first),
                    layer,
                );
                at = end;
            }
        }
    }
    if layer.is_none() && node.is_empty() {
        *child = Child::Empty;
    }
}

/// The node behind `child`, not shared and not stored any more.
fn writable<'a>(child: &'a mut Child, cache: &Cache, level: u8) -> &'a mut Node {
    match child {
        Child::Empty => *child = Child::Node(Rc::new(Node::empty(level))),
        Child::Stored(page) => {
            let stored = cache
                .get(page)
                .expect("the caller has loaded what is missing");
            *child = Child::Node(Rc::new(Node::clone(stored)));
        }
        Child::Node(_) => {}
    }
    let Child::Node(node) = child else {
        unreachable!("it was made one above");
    };
    let node = Rc::make_mut(node);
    node.page.take();
    node
}
