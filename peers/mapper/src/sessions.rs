//! The table of sessions: which client may ask about which volume.
//!
//! Invariant: a handle is used for one session only, as far as anybody remembers an older one.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::effect::ClientId;
use crate::volume::Volume;

/// A client's right to ask about a volume.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) client: ClientId,
    pub(crate) volume: Rc<Volume>,
    pub(crate) write: bool,
}

/// All sessions by handle.
#[derive(Debug)]
pub(crate) struct Sessions {
    by_handle: RefCell<BTreeMap<u32, Session>>,
    next: Cell<u32>,
    /// Clients that disconnected: what they asked for before ends at once. One entry for each death of a process.
    disconnected: RefCell<BTreeSet<ClientId>>,
}

impl Default for Sessions {
    fn default() -> Self {
        Sessions {
            by_handle: RefCell::default(),
            next: Cell::new(1),
            disconnected: RefCell::default(),
        }
    }
}

impl Sessions {
    /// A new session; its handle.
    pub(crate) fn add(&self, session: Session) -> u32 {
        let handle = self.next.get();
        // Handles are positive results on the wire; after 2^31 sessions they begin again, far from any that is alive.
        self.next
            .set(if handle >= 0x7fff_fff0 { 1 } else { handle + 1 });
        self.by_handle.borrow_mut().insert(handle, session);
        handle
    }

    /// The session of `handle`, if it is `client`'s.
    pub(crate) fn of_client(&self, handle: u32, client: ClientId) -> Option<Session> {
        let session = self.by_handle.borrow().get(&handle).cloned();
        session.filter(|session| session.client == client)
    }

    pub(crate) fn contains(&self, handle: u32) -> bool {
        self.by_handle.borrow().contains_key(&handle)
    }

    pub(crate) fn remove(&self, handle: u32) {
        self.by_handle.borrow_mut().remove(&handle);
    }

    pub(crate) fn len(&self) -> usize {
        self.by_handle.borrow().len()
    }

    /// `client` disconnected: its sessions, for the caller to end.
    pub(crate) fn disconnect(&self, client: ClientId) -> Vec<(u32, Session)> {
        self.disconnected.borrow_mut().insert(client);
        let sessions = self.by_handle.borrow();
        let of_client = sessions
            .iter()
            .filter(|(_, session)| session.client == client);
        of_client
            .map(|(handle, session)| (*handle, session.clone()))
            .collect()
    }

    /// Whether `client` disconnected.
    pub(crate) fn is_disconnected(&self, client: ClientId) -> bool {
        self.disconnected.borrow().contains(&client)
    }
}
