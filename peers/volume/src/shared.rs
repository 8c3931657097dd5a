//! The handle by which a reactor, drivers and control share one volume peer.

use std::cell::RefCell;
use std::rc::Rc;

use archipelago_protocol::control::PeerStatus;
use archipelago_protocol::volume::{
    OnFull, OpenMode, VolumeEvent, VolumeHandle, VolumeRequest, Volumes,
};
use archipelago_protocol::{ErrorCode, Lineage};
use archipelago_runtime::{Peer, Progress};
use xseg::{ClientPort, Region, RegionId};

use crate::control_event::ControlEvent;
use crate::peer::VolumePeer;

/// One volume peer, shared by the reactor, every driver and control, all on one thread.
#[derive(Debug)]
pub struct Shared<M, B>(Rc<RefCell<VolumePeer<M, B>>>);

impl<M, B> Clone for Shared<M, B> {
    fn clone(&self) -> Self {
        Shared(Rc::clone(&self.0))
    }
}

impl<M: ClientPort, B: ClientPort> Shared<M, B> {
    /// Makes `peer` shareable.
    #[must_use]
    pub fn new(peer: VolumePeer<M, B>) -> Self {
        Shared(Rc::new(RefCell::new(peer)))
    }

    /// Calls `what` with the peer. Must not be called from within another such call.
    pub fn with<T>(&self, what: impl FnOnce(&mut VolumePeer<M, B>) -> T) -> T {
        what(&mut self.0.borrow_mut())
    }

    /// See [`VolumePeer::orphan`].
    pub fn orphan(&self, volume: VolumeHandle) {
        self.with(|peer| peer.orphan(volume));
    }

    /// See [`VolumePeer::snapshot`].
    pub fn snapshot(&self, lineage: Lineage, token: u64, id: u64) {
        self.with(|peer| peer.snapshot(lineage, token, id));
    }

    /// See [`VolumePeer::next_control_event`].
    #[must_use]
    pub fn next_control_event(&self) -> Option<ControlEvent> {
        self.with(VolumePeer::next_control_event)
    }

    /// See [`VolumePeer::resized`].
    pub fn resized(&self, lineage: Lineage, size: u64) {
        self.with(|peer| peer.resized(lineage, size));
    }

    /// See [`VolumePeer::status`].
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
