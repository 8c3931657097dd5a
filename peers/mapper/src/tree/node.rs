//! Nodes of a tree in memory.

use std::cell::OnceCell;
use std::rc::Rc;

use super::leaf::Leaf;
use super::place::{FAN_SLOTS, PageRef};

#[derive(Debug)]
pub(crate) struct Node {
    /// Where exactly this content is stored, if it is.
    pub(super) page: OnceCell<PageRef>,
    pub(super) body: Body,
}

#[derive(Debug, Clone)]
pub(crate) enum Body {
    Inner(Vec<Child>),
    Leaf(Leaf),
}

#[derive(Debug, Clone)]
pub(crate) enum Child {
    Empty,
    Stored(PageRef),
    Node(Rc<Node>),
}

impl Clone for Node {
    /// A copy is made to be changed: it is not stored.
    fn clone(&self) -> Self {
        Node {
            page: OnceCell::new(),
            body: self.body.clone(),
        }
    }
}

impl Node {
    pub(crate) fn body(&self) -> &Body {
        &self.body
    }

    pub(super) fn empty(level: u8) -> Self {
        let body = match level {
            0 => Body::Leaf(Leaf::new()),
            _ => Body::Inner(vec![Child::Empty; FAN_SLOTS]),
        };
        Node {
            page: OnceCell::new(),
            body,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match &self.body {
            Body::Inner(children) => children.iter().all(|child| matches!(child, Child::Empty)),
            Body::Leaf(leaf) => leaf.is_empty(),
        }
    }
}
