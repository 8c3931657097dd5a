//! The peer as drivers see it: the [`Volumes`] trait, and the handle by which many hold one peer.

use std::cell::RefCell;
use std::rc::Rc;

use archipelago_protocol::control::PeerStatus;
use archipelago_protocol::volume::{
    OnFull, OpenMode, VolumeEvent, VolumeHandle, VolumeRequest, Volumes,
};
use archipelago_protocol::{ErrorCode, Lineage};
use archipelago_runtime::{Peer, Progress};
use xseg::{ClientPort, Region, RegionId};

use crate::model::{State, Volume};
use crate::peer::{Known, VolumePeer};
use crate::snapshot::ControlEvent;

/// The handle of a volume for which there was no slot. No slot has this number.
const NO_SLOT: u32 = 0xffff;

impl<M: ClientPort, B: ClientPort> VolumePeer<M, B> {
    /// Closes `volume` for a driver that is gone: nobody collects its events any more.
    pub fn forsake(&mut self, volume: VolumeHandle) {
        let Some(v) = self.find(volume) else { return };
        while self.next_event(volume).is_some() {}
        if self.find(volume).is_some() {
            self.volumes[v].listening = false;
            self.set_on_full(v, OnFull::Report);
            self.close(volume);
        }
    }
}

impl<M: ClientPort, B: ClientPort> Volumes for VolumePeer<M, B> {
    fn add_region(&mut self, id: RegionId, region: Region) -> Result<(), ErrorCode> {
        if id == RegionId::ARENA {
            return Err(ErrorCode::Invalid);
        }
        self.blocker
            .add_region(id, region.clone())
            .map_err(|why| match why {
                xseg::PortError::Full => ErrorCode::NoSpace,
                _ => ErrorCode::Unavailable,
            })?;
        self.regions.insert(
            id.0,
            Known {
                region,
                ready: false,
            },
        );
        Ok(())
    }

    fn region_ready(&self, id: RegionId) -> bool {
        self.regions.contains_key(&id.0) && self.blocker.region_ready(id)
    }

    fn remove_region(&mut self, id: RegionId) {
        if self.regions.remove(&id.0).is_some() {
            self.blocker.remove_region(id);
        }
    }

    fn fresh_region(&mut self) -> RegionId {
        loop {
            let id = self.next_region;
            self.next_region = self.next_region.checked_add(1).unwrap_or(1);
            if !self.regions.contains_key(&id) {
                return RegionId(id);
            }
        }
    }

    /// A peer that has no slot left gives a handle whose [`VolumeEvent::Opened`] says so.
    fn open(&mut self, lineage: Lineage, mode: OpenMode) -> VolumeHandle {
        let serial = u32::from(self.next_serial);
        let Some(v) = self.volumes.insert(Volume::new(0, lineage, mode)) else {
            return VolumeHandle(NO_SLOT);
        };
        self.next_serial = self.next_serial.checked_add(1).unwrap_or(1);
        let handle = serial << 16 | v;
        self.volumes[v].handle = handle;
        self.make_ready(v);
        VolumeHandle(handle)
    }

    fn close(&mut self, volume: VolumeHandle) {
        let Some(v) = self.find(volume) else { return };
        if self.volumes[v].state != State::Dead {
            self.volumes[v].closing = true;
            self.set_on_full(v, OnFull::Report);
        }
    }

    fn on_full(&mut self, volume: VolumeHandle, policy: OnFull) {
        if let Some(v) = self.find(volume) {
            self.set_on_full(v, policy);
        }
    }

    fn recall(&mut self, volume: VolumeHandle) {
        if let Some(v) = self.find(volume) {
            self.recall_parked(v);
        }
    }

    fn submit(
        &mut self,
        volume: VolumeHandle,
        cookie: u64,
        request: VolumeRequest<'_>,
    ) -> Result<(), ErrorCode> {
        self.submit_request(volume, cookie, &request)
    }

    fn next_event(&mut self, volume: VolumeHandle) -> Option<VolumeEvent> {
        if volume.0 == NO_SLOT {
            let error =
                archipelago_protocol::Error::new(ErrorCode::NoSpace, "too many volumes are open");
            return Some(VolumeEvent::Opened { result: Err(error) });
        }
        let v = self.find(volume)?;
        let entry = &mut self.volumes[v];
        if let Some(r) = entry.done.pop(&mut self.requests) {
            entry.slots -= 1;
            let request = self.requests.remove(r);
            return Some(VolumeEvent::Done {
                cookie: request.cookie,
                result: request.result,
            });
        }
        let event = entry.events.pop_front();
        self.free_if_dead(v);
        event
    }
}

/// One volume peer, held by the reactor, by every driver and by control, all on one thread.
#[derive(Debug)]
pub struct Shared<M, B>(Rc<RefCell<VolumePeer<M, B>>>);

impl<M, B> Clone for Shared<M, B> {
    fn clone(&self) -> Self {
        Shared(Rc::clone(&self.0))
    }
}

impl<M: ClientPort, B: ClientPort> Shared<M, B> {
    /// Lets several hold `peer`.
    #[must_use]
    pub fn new(peer: VolumePeer<M, B>) -> Self {
        Shared(Rc::new(RefCell::new(peer)))
    }

    /// Calls `what` with the peer. Not from within another call.
    pub fn with<T>(&self, what: impl FnOnce(&mut VolumePeer<M, B>) -> T) -> T {
        what(&mut self.0.borrow_mut())
    }

    /// As [`VolumePeer::forsake`].
    pub fn forsake(&self, volume: VolumeHandle) {
        self.with(|peer| peer.forsake(volume));
    }

    /// As [`VolumePeer::snapshot`].
    pub fn snapshot(&self, lineage: Lineage, token: u64, id: u64) {
        self.with(|peer| peer.snapshot(lineage, token, id));
    }

    /// As [`VolumePeer::next_control_event`].
    #[must_use]
    pub fn next_control_event(&self) -> Option<ControlEvent> {
        self.with(VolumePeer::next_control_event)
    }

    /// As [`VolumePeer::resized`].
    pub fn resized(&self, lineage: Lineage, size: u64) {
        self.with(|peer| peer.resized(lineage, size));
    }

    /// As [`VolumePeer::status`].
    #[must_use]
    pub fn status(&self) -> PeerStatus {
        self.with(|peer| peer.status())
    }
}

impl<M: ClientPort, B: ClientPort> Volumes for Shared<M, B> {
    fn add_region(&mut self, id: RegionId, region: Region) -> Result<(), ErrorCode> {
        self.0.borrow_mut().add_region(id, region)
    }

    fn region_ready(&self, id: RegionId) -> bool {
        self.0.borrow().region_ready(id)
    }

    fn remove_region(&mut self, id: RegionId) {
        self.0.borrow_mut().remove_region(id);
    }

    fn fresh_region(&mut self) -> RegionId {
        self.0.borrow_mut().fresh_region()
    }

    fn open(&mut self, lineage: Lineage, mode: OpenMode) -> VolumeHandle {
        self.0.borrow_mut().open(lineage, mode)
    }

    fn close(&mut self, volume: VolumeHandle) {
        self.0.borrow_mut().close(volume);
    }

    fn on_full(&mut self, volume: VolumeHandle, policy: OnFull) {
        self.0.borrow_mut().on_full(volume, policy);
    }

    fn recall(&mut self, volume: VolumeHandle) {
        self.0.borrow_mut().recall(volume);
    }

    fn submit(
        &mut self,
        volume: VolumeHandle,
        cookie: u64,
        request: VolumeRequest<'_>,
    ) -> Result<(), ErrorCode> {
        self.0.borrow_mut().submit(volume, cookie, request)
    }

    fn next_event(&mut self, volume: VolumeHandle) -> Option<VolumeEvent> {
        self.0.borrow_mut().next_event(volume)
    }
}

impl<M: ClientPort, B: ClientPort> Peer for Shared<M, B> {
    fn name(&self) -> &str {
        "volume"
    }

    fn poll(&mut self) -> Progress {
        self.0.borrow_mut().poll()
    }

    fn prepare_sleep(&mut self) -> bool {
        self.0.borrow_mut().prepare_sleep()
    }

    fn wake(&mut self) {
        self.0.borrow_mut().wake();
    }
}
