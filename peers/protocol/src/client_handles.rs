//! The handles that a client of a blocker has open on one channel: a bounded cache.
//!
//! The least recently used handle is closed when a number is needed. An open is sent ahead of the requests that need it, without a wait;
//! its result comes before the first answer to a request that uses it.
//!
//! Invariants
//! - A handle with requests in flight, or with writes that no completed sync covers, keeps its number.
//! - A request is sent on a handle only behind its open. A number is used again only behind a close.
//! - The port has all open handles, and announces them to the server's successor.
//! - Finding an open handle is one look-up in a table, and allocates nothing.

use rustc_hash::FxHashMap;
use xseg::ClientPort;

use crate::error::ErrorCode;
use crate::handle::{HANDLES_MAX, HandleRequest, OpenObject};
use crate::ids::Lineage;
use crate::object::{FLAG_DURABLE, ObjectOp};
use crate::reply::Reply;

/// Bit in the cookies of opens and closes; cookies of requests are below.
pub const HANDLE_COOKIE: u64 = 1 << 63;
/// A further bit in the cookie of a close.
const CLOSE_COOKIE: u64 = 1 << 62;
/// The end of the list of handles.
const NONE: u32 = u32::MAX;

/// The effect of a request on the durability of its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Effect {
    /// Nothing.
    None = 0,
    /// It writes data that a sync makes durable.
    Writes = 1,
    /// It makes the object's writes durable.
    Syncs = 2,
    /// It deletes the object.
    Deletes = 3,
}

impl Effect {
    /// The effect of `op` with `flags`.
    #[must_use]
    pub fn of(op: ObjectOp, flags: u8) -> Self {
        match op {
            ObjectOp::Write if flags & FLAG_DURABLE != 0 => Effect::None,
            ObjectOp::Write | ObjectOp::Punch => Effect::Writes,
            ObjectOp::Sync => Effect::Syncs,
            ObjectOp::Delete => Effect::Deletes,
            _ => Effect::None,
        }
    }
}

/// A request on a handle, until its answer: small enough for a cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandleUse {
    handle: u32,
    effect: Effect,
}

impl HandleUse {
    /// The use of `handle` by a request of `effect`.
    #[must_use]
    pub fn new(handle: u32, effect: Effect) -> Self {
        HandleUse { handle, effect }
    }

    /// 18 bits, never 0.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.handle + 1) << 2 | self.effect as u64
    }

    /// The use in `bits`; `None` for 0.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        let handle = u32::try_from(bits >> 2).ok()?.checked_sub(1)?;
        let effect = match bits & 3 {
            0 => Effect::None,
            1 => Effect::Writes,
            2 => Effect::Syncs,
            _ => Effect::Deletes,
        };
        Some(HandleUse { handle, effect })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotState {
    /// Its open was sent.
    Open,
    /// Not found any more, perhaps because its open was refused; free when nothing is in flight.
    Leaving(Option<ErrorCode>),
    /// Must be closed before it is used again.
    Free,
}

/// Which writes are durable, in times of the table's clock.
#[derive(Debug, Clone, Copy, Default)]
struct Durability {
    written: u64,
    synced: u64,
    /// Syncs in flight, and when the first of them was sent.
    syncs: u32,
    sync_began: u64,
}

#[derive(Debug)]
struct Slot {
    object: OpenObject,
    state: SlotState,
    in_flight: u32,
    durability: Durability,
    older: u32,
    newer: u32,
}

/// The handles of one channel.
#[derive(Debug)]
pub struct ClientHandles {
    by_object: FxHashMap<OpenObject, u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    capacity: u32,
    oldest: u32,
    newest: u32,
    clock: u64,
    opens: u64,
    pool: Durability,
}

impl Default for ClientHandles {
    fn default() -> Self {
        ClientHandles::new(HANDLES_MAX)
    }
}

impl ClientHandles {
    /// At most `capacity` handles, which is at most [`HANDLES_MAX`].
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        ClientHandles {
            by_object: FxHashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
            capacity: capacity.min(HANDLES_MAX),
            oldest: NONE,
            newest: NONE,
            clock: 0,
            opens: 0,
            pool: Durability::default(),
        }
    }

    /// The handle of `object`, which is opened if necessary; `None`: there is no credit for that now, or all handles are in use.
    pub fn find(&mut self, port: &mut impl ClientPort, object: &OpenObject) -> Option<u32> {
        if let Some(handle) = self.by_object.get(object) {
            let handle = *handle;
            self.touch(handle);
            return Some(handle);
        }
        self.open(port, object)
    }

    /// Records that a request is sent on a handle.
    pub fn sent(&mut self, used: HandleUse) {
        self.clock += 1;
        let clock = self.clock;
        let slot = &mut self.slots[used.handle as usize];
        slot.in_flight += 1;
        match used.effect {
            Effect::None | Effect::Deletes => {}
            Effect::Writes => slot.durability.written = clock,
            Effect::Syncs => slot.durability.sync_sent(clock),
        }
    }

    /// Records that a request on a handle was answered with `reply`. If the handle's open was refused, `reply` gets the reason of that.
    pub fn answered(&mut self, port: &mut impl ClientPort, used: HandleUse, reply: &mut Reply) {
        self.clock += 1;
        let clock = self.clock;
        let Some(slot) = self.slots.get_mut(used.handle as usize) else {
            return;
        };
        slot.in_flight -= 1;
        match used.effect {
            Effect::None => {}
            Effect::Writes => slot.durability.written = clock,
            Effect::Syncs => slot.durability.sync_answered(reply.result.is_ok()),
            Effect::Deletes => slot.durability.written = 0,
        }
        if reply.result == Err(ErrorCode::NotOpen) {
            if let SlotState::Leaving(Some(code)) = slot.state {
                reply.result = Err(code);
            }
            self.leave(port, used.handle, None);
        }
        self.free_if_left(used.handle);
    }

    /// Records that a sync of the pool is sent.
    pub fn pool_sync_sent(&mut self) {
        self.clock += 1;
        self.pool.sync_sent(self.clock);
    }

    /// Records that a sync of the pool was answered; `ok`: with success.
    pub fn pool_sync_answered(&mut self, ok: bool) {
        self.pool.sync_answered(ok);
    }

    /// Handles the answer with `cookie`, if it is that of an open or a close. Returns whether it is.
    pub fn take(&mut self, port: &mut impl ClientPort, cookie: u64, reply: &Reply) -> bool {
        if cookie & HANDLE_COOKIE == 0 {
            return false;
        }
        let handle = cookie & !(HANDLE_COOKIE | CLOSE_COOKIE);
        if let (Err(code), 0, Ok(handle)) =
            (reply.result, cookie & CLOSE_COOKIE, u32::try_from(handle))
        {
            self.leave(port, handle, Some(code));
            self.free_if_left(handle);
        }
        true
    }

    /// Closes the handles of the objects of `lineage`, which are not used any more; a later use opens them again.
    pub fn forget(&mut self, port: &mut impl ClientPort, lineage: Lineage) {
        let of_lineage = |(object, handle): (&OpenObject, &u32)| {
            (object.id.lineage == lineage).then_some(*handle)
        };
        let handles: Vec<u32> = self.by_object.iter().filter_map(of_lineage).collect();
        for handle in handles {
            self.leave(port, handle, None);
            self.free_if_left(handle);
        }
    }

    /// Opens and closes sent so far.
    #[must_use]
    pub fn opens(&self) -> u64 {
        self.opens
    }

    /// Handles that are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_object.len()
    }

    /// Whether no handle is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_object.is_empty()
    }

    fn open(&mut self, port: &mut impl ClientPort, object: &OpenObject) -> Option<u32> {
        if port.credits() == 0 {
            return None;
        }
        let unused = u32::try_from(self.slots.len()).ok();
        let handle = match unused.filter(|number| *number < self.capacity) {
            // Numbers that were used before come first, so that the tables of both sides stay short.
            Some(unused) if self.free.is_empty() || port.credits() < 2 => unused,
            _ => self.close_free(port)?,
        };
        let request = |again| HandleRequest::Open {
            handle,
            object: *object,
            again,
        };
        let cookie = HANDLE_COOKIE | u64::from(handle);
        port.submit(cookie, request(false).encode()).ok()?;
        self.opens += 1;
        port.announce(handle, cookie, request(true).encode());
        let slot = Slot {
            object: *object,
            state: SlotState::Open,
            in_flight: 0,
            durability: Durability::default(),
            older: NONE,
            newer: NONE,
        };
        match self.slots.get_mut(handle as usize) {
            Some(free) => {
                self.free.pop();
                *free = slot;
            }
            None => self.slots.push(slot),
        }
        self.by_object.insert(*object, handle);
        self.append(handle);
        Some(handle)
    }

    /// Closes a free handle, or an evicted one: it stays the last in the list of free ones.
    fn close_free(&mut self, port: &mut impl ClientPort) -> Option<u32> {
        let handle = self.free.last().copied().or_else(|| self.evict(port))?;
        let close = HandleRequest::Close { handle }.encode();
        let cookie = HANDLE_COOKIE | CLOSE_COOKIE | u64::from(handle);
        // With a credit for the open, too: so a number is always either in use or free.
        if port.credits() < 2 || port.submit(cookie, close).is_err() {
            return None;
        }
        self.opens += 1;
        Some(handle)
    }

    /// Frees the least recently used handle that can be closed.
    fn evict(&mut self, port: &mut impl ClientPort) -> Option<u32> {
        for _ in 0..self.by_object.len() {
            let handle = self.oldest;
            let slot = self.slots.get(handle as usize)?;
            let unsynced = slot.durability.written > slot.durability.synced.max(self.pool.synced);
            if slot.in_flight == 0 && !unsynced {
                self.leave(port, handle, None);
                self.free_if_left(handle);
                return Some(handle);
            }
            // It is moved to the front, so that the next search does not check it first again.
            self.touch(handle);
        }
        None
    }

    /// Removes the handle from the table of objects.
    fn leave(&mut self, port: &mut impl ClientPort, handle: u32, why: Option<ErrorCode>) {
        let Some(slot) = self.slots.get_mut(handle as usize) else {
            return;
        };
        if slot.state != SlotState::Open {
            return;
        }
        slot.state = SlotState::Leaving(why);
        let object = slot.object;
        self.by_object.remove(&object);
        self.unlink(handle);
        port.withdraw(handle);
    }

    fn free_if_left(&mut self, handle: u32) {
        if let Some(slot) = self.slots.get_mut(handle as usize)
            && matches!(slot.state, SlotState::Leaving(_))
            && slot.in_flight == 0
        {
            slot.state = SlotState::Free;
            self.free.push(handle);
        }
    }

    /// Makes the handle the most recently used one.
    fn touch(&mut self, handle: u32) {
        if self.newest != handle {
            self.unlink(handle);
            self.append(handle);
        }
    }

    fn unlink(&mut self, handle: u32) {
        let Slot { older, newer, .. } = self.slots[handle as usize];
        match self.slots.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
        match self.slots.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
    }

    fn append(&mut self, handle: u32) {
        let older = std::mem::replace(&mut self.newest, handle);
        match self.slots.get_mut(older as usize) {
            Some(older) => older.newer = handle,
            None => self.oldest = handle,
        }
        let slot = &mut self.slots[handle as usize];
        (slot.older, slot.newer) = (older, NONE);
    }
}

impl Durability {
    fn sync_sent(&mut self, now: u64) {
        if self.syncs == 0 {
            self.sync_began = now;
        }
        self.syncs += 1;
    }

    /// Overlapping syncs count from the first of them, which is safe.
    fn sync_answered(&mut self, ok: bool) {
        self.syncs -= 1;
        if ok {
            self.synced = self.synced.max(self.sync_began);
        }
    }
}

#[cfg(test)]
mod tests;
