//! The channel of an open file: opened by the node, given up when it ends, opened anew when somebody opens the file again.

use std::os::fd::{AsFd, BorrowedFd};

use archipelago_api::client::Client;
use archipelago_protocol::{Access, Error, ErrorCode, Lineage, Name};
use archipelago_segment::{VolumeClient, VolumeOptions};

use crate::job::Incarnation;

/// Buffers of an open file: 4 MiB, of which only what is used takes memory. Enough pieces in flight for a disk.
const OPTIONS: VolumeOptions = VolumeOptions {
    buffers: 32,
    buffer_len: 128 << 10,
};
/// Bytes of a buffer.
pub(crate) const BUFFER_LEN: u32 = 128 << 10;
const _: () = assert!(BUFFER_LEN as usize == OPTIONS.buffer_len);

/// Opens one thing, again and again.
#[derive(Debug, Clone)]
pub(crate) struct Opener {
    client: Client,
    name: Name,
    lineage: Lineage,
}

impl Opener {
    /// Opens what has the name `name` as long as it is `lineage`.
    pub(crate) fn new(client: Client, name: Name, lineage: Lineage) -> Opener {
        Opener {
            client,
            name,
            lineage,
        }
    }

    /// What it opens.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    fn open(&self, access: Access) -> Result<(VolumeClient, u64), Error> {
        let opened = self.client.open(&self.name, access)?;
        if opened.lineage != self.lineage {
            // The endpoint closes what nobody comes for.
            let message = format!("`{}` is another one now", self.name);
            return Err(Error::new(ErrorCode::NotFound, message));
        }
        let volume = VolumeClient::connect(&opened.socket, opened.uid, OPTIONS)?;
        Ok((volume, opened.size))
    }
}

#[derive(Debug)]
struct Connection {
    access: Access,
    client: VolumeClient,
}

/// The channel, if there is one.
#[derive(Debug)]
pub(crate) struct Channel {
    opener: Opener,
    connection: Option<Connection>,
    /// Of the connection, or of the last one.
    incarnation: Incarnation,
}

impl Channel {
    pub(crate) fn new(opener: Opener) -> Channel {
        Channel {
            opener,
            connection: None,
            incarnation: Incarnation(0),
        }
    }

    /// What it is a channel to.
    pub(crate) fn name(&self) -> &Name {
        self.opener.name()
    }

    /// The client, as long as the endpoint is there.
    pub(crate) fn live(&mut self) -> Option<&mut VolumeClient> {
        let client = &mut self.connection.as_mut()?.client;
        (!client.is_gone()).then_some(client)
    }

    /// The client, also of an endpoint that has gone: it still has requests to give back.
    pub(crate) fn client(&mut self) -> Option<&mut VolumeClient> {
        self.connection
            .as_mut()
            .map(|connection| &mut connection.client)
    }

    /// What is readable when the client has something to do.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        let connection = self.connection.as_ref()?;
        Some(connection.client.as_fd())
    }

    /// The incarnation that serves, if one does.
    pub(crate) fn incarnation(&mut self) -> Option<Incarnation> {
        self.live()?;
        Some(self.incarnation)
    }

    /// The incarnation that serves `access`, if one does.
    pub(crate) fn serves(&mut self, access: Access) -> Option<Incarnation> {
        let enough = self.connection.as_ref()?.access >= access;
        enough.then(|| self.incarnation()).flatten()
    }

    /// Opens it so that it serves `access` and what it served before; nothing is in flight. Gives the file's size.
    ///
    /// # Errors
    /// What the node says. Who had it open to be read has it still, if the node lets them.
    pub(crate) fn open(&mut self, access: Access) -> Result<u64, Error> {
        let readers = self.live().is_some();
        if readers && let Err(error) = self.close() {
            tracing::warn!("`{}`, open to be read: {error}", self.opener.name);
        }
        self.connection = None;
        match self.opener.open(access) {
            Ok((client, size)) => {
                if !readers {
                    self.incarnation.0 += 1;
                }
                self.connection = Some(Connection { access, client });
                Ok(size)
            }
            Err(error) => {
                if readers && let Ok((client, _)) = self.opener.open(Access::Read) {
                    let access = Access::Read;
                    self.connection = Some(Connection { access, client });
                }
                Err(error)
            }
        }
    }

    /// Closes it; nothing is in flight. Of a channel that ended before, whoever used it has been told.
    ///
    /// # Errors
    /// What was lost.
    pub(crate) fn close(&mut self) -> Result<(), Error> {
        match self.connection.take() {
            Some(Connection { client, .. }) if !client.is_gone() => client.close(),
            _ => Ok(()),
        }
    }
}
