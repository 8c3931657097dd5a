//! A connection to an endpoint's socket after the handshake: the next byte belongs to the transmission. The kernel's client takes it over.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use archipelago_nbd_protocol::client::{CHOSEN_LEN, Chosen, GREETING_LEN, choose_default, chosen};
use archipelago_protocol::{Error, ErrorCode};

/// Timeout of each step of the handshake.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// The connection, and the properties of the export.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) export: Chosen,
}

impl Connection {
    /// Connects to the endpoint at `socket`.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] if the endpoint does not answer, or answers incorrectly.
    pub(super) fn open(socket: &Path) -> Result<Connection, Error> {
        let failed = |why: &dyn std::fmt::Display| {
            let message = format!("connecting a block device to {}: {why}", socket.display());
            Error::new(ErrorCode::Unavailable, message)
        };
        let mut stream = UnixStream::connect(socket).map_err(|error| failed(&error))?;
        let agreed = agree(&mut stream).map_err(|error| failed(&error))?;
        let export = agreed.ok_or_else(|| failed(&"it does not speak NBD"))?;
        Ok(Connection { stream, export })
    }
}

fn agree(stream: &mut UnixStream) -> std::io::Result<Option<Chosen>> {
    stream.set_read_timeout(Some(STEP_TIMEOUT))?;
    stream.set_write_timeout(Some(STEP_TIMEOUT))?;
    let mut greeting = [0; GREETING_LEN];
    stream.read_exact(&mut greeting)?;
    let Some(choice) = choose_default(&greeting) else {
        return Ok(None);
    };
    stream.write_all(&choice)?;
    let mut answer = [0; CHOSEN_LEN];
    stream.read_exact(&mut answer)?;
    // The kernel would treat a timeout as the end of the connection.
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok(chosen(&answer))
}
