//! The node to which the scripts send their requests.

use std::fmt;

use archipelago_api::client::Client;
use archipelago_protocol::Name;

use crate::clock::Clock;
use crate::settings::Settings;
use crate::volume::Volume;

/// The node, and what else a script needs.
pub struct Node<'a> {
    client: &'a Client,
    clock: &'a dyn Clock,
    settings: &'a Settings,
}

impl fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("client", self.client)
            .finish_non_exhaustive()
    }
}

impl<'a> Node<'a> {
    /// The node behind `client`, for an installation with `settings`.
    #[must_use]
    pub fn new(client: &'a Client, clock: &'a dyn Clock, settings: &'a Settings) -> Node<'a> {
        Node {
            client,
            clock,
            settings,
        }
    }

    /// The volume `name`.
    pub(super) fn volume(&self, name: &'a Name) -> Volume<'a> {
        Volume::new(self.client, self.clock, name)
    }

    pub(super) fn client(&self) -> &'a Client {
        self.client
    }

    pub(super) fn settings(&self) -> &'a Settings {
        self.settings
    }
}
