//! The result of the negotiation between front end and device.

use xseg::Region;

use crate::chain::Allowed;
use crate::config::feature;
use crate::dirty_log::DirtyLog;
use crate::inflight::QueueLog;
use crate::queue::Notifications;
use crate::shared::Shared;

/// Whether there is a front end for the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrontEnd {
    /// The front end, or the next one that connects.
    Served,
    /// Nobody: the front end has disconnected, or has reset the device.
    Dropped,
}

/// An in-flight region.
#[derive(Debug)]
pub(super) struct InFlightArea {
    pub(super) region: Region,
    pub(super) start: u64,
    pub(super) queues: u16,
    pub(super) size: u16,
}

/// Features, and the regions that go with them.
#[derive(Debug, Default)]
pub(super) struct Negotiated {
    features: u64,
    dirty_log: Option<DirtyLog>,
    inflight: Option<InFlightArea>,
}

impl Negotiated {
    pub(super) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Sets the acknowledged features. Returns whether guest memory is logged from now on.
    pub(super) fn set_features(&mut self, features: u64) -> bool {
        let logs_now = features & !self.features & feature::LOG_ALL != 0;
        self.features = features;
        logs_now
    }

    pub(super) fn forget_features(&mut self) {
        self.features = 0;
    }

    /// The front end has disconnected.
    pub(super) fn forget(&mut self) {
        *self = Negotiated::default();
    }

    pub(super) fn set_dirty_log(&mut self, log: DirtyLog) {
        self.dirty_log = Some(log);
    }

    /// The dirty log, if the front end has requested logging.
    pub(super) fn dirty_log(&self) -> Option<&DirtyLog> {
        self.dirty_log
            .as_ref()
            .filter(|_| self.has(feature::LOG_ALL))
    }

    pub(super) fn set_inflight(&mut self, area: InFlightArea) {
        self.inflight = Some(area);
    }

    /// The part of the in-flight region that the queue `index` uses.
    pub(super) fn queue_log(&self, index: u16) -> Option<QueueLog> {
        let area = self.inflight.as_ref()?;
        let fits = index < area.queues;
        fits.then(|| QueueLog::new(&area.region, area.start, index, area.size))?
    }

    pub(super) fn notifications(&self) -> Notifications {
        Notifications {
            event_idx: self.has(feature::EVENT_IDX),
            on_empty: self.has(feature::NOTIFY_ON_EMPTY),
        }
    }

    /// Whether a chain may have an indirect table.
    pub(super) fn indirect(&self) -> Allowed {
        match self.has(feature::INDIRECT_DESC) {
            true => Allowed::Yes,
            false => Allowed::No,
        }
    }

    /// Whether every completed write must be durable: the guest has no write cache, or has switched it off.
    pub(super) fn write_through(&self, shared: &Shared) -> bool {
        // A guest that cannot flush has no other way to make a write durable, whatever its write-cache byte is.
        let switched_off = self.has(feature::CONFIG_WCE) && !shared.writeback();
        switched_off || !self.has(feature::FLUSH)
    }
}
