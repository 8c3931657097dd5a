//! The volume peer's port to a mapper that can die and be replaced.

use xseg::local::LocalClient;
use xseg::{ClientPort, Completion, PortError, Region, RegionId, Submission};

/// A port whose server may be another one later. What is in flight then is forgotten.
#[derive(Debug)]
pub(crate) struct MapPort {
    client: LocalClient,
    incarnation: u64,
    connected: bool,
}

impl MapPort {
    pub(crate) fn new(client: LocalClient) -> Self {
        MapPort {
            client,
            incarnation: 1,
            connected: true,
        }
    }

    /// The server is gone; nothing that it said is taken any more.
    pub(crate) fn disconnect(&mut self) {
        self.connected = false;
    }

    /// There is another one.
    pub(crate) fn reconnect(&mut self, client: LocalClient) {
        self.client = client;
        self.incarnation += 1;
        self.connected = true;
    }
}

impl ClientPort for MapPort {
    fn credits(&self) -> usize {
        if self.connected {
            self.client.credits()
        } else {
            0
        }
    }

    fn submit(&mut self, cookie: u64, submission: Submission) -> Result<(), PortError> {
        if !self.connected {
            return Err(PortError::Broken);
        }
        self.client.submit(cookie, submission)
    }

    fn publish(&mut self) {
        self.client.publish();
    }

    fn complete(&mut self) -> Option<(u64, Completion)> {
        self.connected.then(|| self.client.complete()).flatten()
    }

    fn add_region(&mut self, id: RegionId, region: Region) -> Result<(), PortError> {
        self.client.add_region(id, region)
    }

    fn region_ready(&self, id: RegionId) -> bool {
        self.client.region_ready(id)
    }

    fn remove_region(&mut self, id: RegionId) {
        self.client.remove_region(id);
    }

    fn arena(&self) -> &Region {
        self.client.arena()
    }

    fn incarnation(&self) -> u64 {
        self.incarnation
    }

    fn is_connected(&self) -> bool {
        self.connected
    }

    fn prepare_sleep(&mut self) -> bool {
        self.client.prepare_sleep()
    }

    fn wake(&mut self) {
        self.client.wake();
    }
}
