//! How a process comes to the channel of a volume: the node opens the volume, this process connects and takes the reservation.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use archipelago_api::client::{Client, path_segment};
use archipelago_api::types::{Bulk, OpenVolume, VolumePage};
use archipelago_protocol::{Access, Error, ErrorCode, Lineage, Name};
use archipelago_runtime::{Clock, SystemClock};
use archipelago_segment::{VolumeClient, VolumeOptions};

use crate::reservation::Reservation;

/// How often a volume is opened whose reservation is removed before this process has locked it: each time, somebody else asked for the
/// volume in that millisecond.
const TRIES: usize = 10;
/// How long the process that has just opened a volume may take to answer before it counts as dead.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Names on a page of the node's list.
const PAGE_LEN: usize = 1000;

/// An open volume and its channel.
#[derive(Debug)]
pub struct Connection {
    /// What it was opened for.
    pub access: Access,
    /// The client of the channel.
    pub client: VolumeClient,
    /// The socket at which it was met: its marker says whether its process lost something when it stopped.
    pub socket: PathBuf,
    /// `None`: it is not kept when its process dies.
    pub reservation: Option<Arc<Reservation>>,
    /// Bytes of the volume.
    pub size: u64,
}

/// Opens one thing, again and again.
#[derive(Debug, Clone)]
pub struct Opener {
    client: Client,
    name: Name,
    lineage: Lineage,
    options: VolumeOptions,
}

impl Opener {
    /// Opens what has the name `name` as long as it is `lineage`, each time with a channel as `options` say.
    #[must_use]
    pub fn new(client: Client, name: Name, lineage: Lineage, options: VolumeOptions) -> Opener {
        Opener {
            client,
            name,
            lineage,
            options,
        }
    }

    /// What it opens.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Opens it for `access`, and has it kept. `held` is the reservation of this process for less than that, which goes on if this fails.
    ///
    /// # Errors
    /// What the node says; [`ErrorCode::NotFound`] if the name is another thing's by now.
    pub fn open(&self, access: Access, held: Option<&Reservation>) -> Result<Connection, Error> {
        let request = OpenVolume {
            read_only: access == Access::Read,
            keep: true,
            reservation: held.and_then(Reservation::name).map(str::to_owned),
        };
        for _ in 0..TRIES {
            let opened = self.ask(&request)?;
            let client = VolumeClient::connect(&opened.socket, opened.uid, self.options)?;
            let reservation = match &opened.reservation {
                None => None,
                Some(path) => match Reservation::take(path)? {
                    Some(taken) => Some(Arc::new(taken)),
                    // The endpoint closes the volume when the client is dropped.
                    None => continue,
                },
            };
            return Ok(Connection {
                access,
                client,
                socket: opened.socket,
                reservation,
                size: opened.size,
            });
        }
        let message = format!("`{}` is asked for by too many at once", self.name);
        Err(Error::new(ErrorCode::InUse, message))
    }

    /// Opens it again for `access`, as the holder of `reservation`, under whatever name it has now.
    ///
    /// # Errors
    /// [`ErrorCode::Stale`] if others may have had it meanwhile, which is final; else what is to be tried again.
    pub fn reopen(
        &mut self,
        access: Access,
        reservation: &Arc<Reservation>,
    ) -> Result<Connection, Error> {
        let request = OpenVolume {
            read_only: access == Access::Read,
            keep: true,
            reservation: reservation.name().map(str::to_owned),
        };
        let opened = match self.ask(&request) {
            Err(error) if error.code == ErrorCode::NotFound => {
                self.name = self.find()?.ok_or(error)?;
                self.ask(&request)?
            }
            opened => opened?,
        };
        let clock = SystemClock;
        let deadline = clock.now() + CONNECT_TIMEOUT;
        let may_wait = || match clock.now() < deadline {
            true => Ok(()),
            false => Err(Error::new(ErrorCode::Unavailable, "the endpoint is silent")),
        };
        let client =
            VolumeClient::connect_while(&opened.socket, opened.uid, self.options, may_wait)?;
        Ok(Connection {
            access,
            client,
            socket: opened.socket,
            reservation: Some(Arc::clone(reservation)),
            size: opened.size,
        })
    }

    fn ask(&self, request: &OpenVolume) -> Result<Bulk, Error> {
        let opened = self.client.open_as(&self.name, request)?;
        if opened.lineage != self.lineage {
            // The endpoint closes what nobody comes for.
            let message = format!("`{}` is another one now", self.name);
            return Err(Error::new(ErrorCode::NotFound, message));
        }
        Ok(opened)
    }

    /// The name that it has now.
    fn find(&self) -> Result<Option<Name>, Error> {
        let mut after: Option<Name> = None;
        loop {
            let mut path = format!("/v1/volumes?limit={PAGE_LEN}");
            if let Some(after) = &after {
                path.push_str(&format!("&after={}", path_segment(after.as_str())));
            }
            let page: VolumePage = self.client.get(&path)?;
            let mut entries = page.volumes.into_iter().map(|view| view.entry);
            if let Some(found) = entries.find(|entry| entry.lineage == self.lineage) {
                return Ok(Some(found.name));
            }
            after = page.next;
            if after.is_none() {
                return Ok(None);
            }
        }
    }
}
