//! Where clients connect: an address of TCP, or a UNIX socket.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use archipelago_endpoint::SocketFile;
use archipelago_protocol::{Error, ErrorCode};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Mode bits of a UNIX socket: the owner alone.
const SOCKET_MODE: u32 = 0o600;
/// TCP keepalive for a silent client: after this idle time the host is probed, several times. So two minutes after a host has died, its
/// connection is closed.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_COUNT: u32 = 4;

/// Where clients connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Address and port; port 0: any.
    Address(SocketAddr),
    /// Path of a UNIX socket, which is made. A socket without a server is replaced.
    Socket(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Address(address) => address.fmt(f),
            Place::Socket(path) => path.display().fmt(f),
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix {
        socket: UnixListener,
        /// Removed with the listener.
        _file: SocketFile,
    },
}

/// A client that was accepted.
#[derive(Debug)]
pub(crate) enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Listens at `place`.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if another server listens there; [`ErrorCode::Exists`] if the path is something else than a socket;
    /// [`ErrorCode::Invalid`] for a path that is too long; otherwise [`ErrorCode::Denied`], [`ErrorCode::NotFound`] or [`ErrorCode::Io`]
    /// with the kernel's error.
    pub(crate) async fn bind(place: &Place) -> Result<Listener, Error> {
        let bound = match place {
            Place::Address(address) => TcpListener::bind(address).await.map(Listener::Tcp),
            Place::Socket(path) => listen_at(path).await,
        };
        bound.map_err(|error| {
            let code = match error.kind() {
                io::ErrorKind::AddrInUse => ErrorCode::InUse,
                io::ErrorKind::AlreadyExists => ErrorCode::Exists,
                io::ErrorKind::InvalidInput => ErrorCode::Invalid,
                io::ErrorKind::NotFound => ErrorCode::NotFound,
                io::ErrorKind::PermissionDenied => ErrorCode::Denied,
                _ => ErrorCode::Io,
            };
            Error::new(code, format!("listening on {place}: {error}"))
        })
    }

    /// The place where clients connect: with the port that the kernel has chosen.
    ///
    /// # Errors
    /// The kernel's error.
    pub(crate) fn place(&self, asked: &Place) -> io::Result<Place> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().map(Place::Address),
            Listener::Unix { .. } => Ok(asked.clone()),
        }
    }

    /// The next client, and its name in the log.
    pub(crate) async fn accept(&self) -> io::Result<(Accepted, String)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Accepted::Tcp(stream), address.to_string()))
            }
            Listener::Unix { socket, .. } => {
                let (stream, _unnamed) = socket.accept().await?;
                let process = stream.peer_cred()?.pid().unwrap_or(0);
                Ok((Accepted::Unix(stream), format!("process {process}")))
            }
        }
    }
}

/// Replaces a socket file without a server, never one with a server. Two servers that start at the same moment do not exclude each other:
/// the second one gets the path.
async fn listen_at(path: &Path) -> io::Result<Listener> {
    let is_served = match UnixStream::connect(path).await {
        Ok(_connection) => true,
        // The queue of waiting clients is full: there is a server.
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    };
    if is_served {
        let text = "another process serves this socket";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    let (socket, file) = SocketFile::listen(path, SOCKET_MODE)?;
    Ok(Listener::Unix {
        socket: UnixListener::from_std(socket)?,
        _file: file,
    })
}

/// Sends small replies at once, and notices the death of a client's host.
pub(crate) fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_COUNT);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use tokio::runtime::Builder;

    use super::*;

    #[test]
    fn a_socket_is_for_its_owner_and_replaced_only_if_nobody_serves_it() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exports");
        let place = Place::Socket(path.clone());
        let bind = |place: &Place| runtime.block_on(Listener::bind(place));
        let code = |place: &Place| bind(place).unwrap_err().code;

        // What a killed server leaves.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = bind(&place).unwrap();
        assert_eq!(first.place(&place).unwrap(), place);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(code(&place), ErrorCode::InUse);
        runtime.block_on(async {
            let _client = UnixStream::connect(&path).await.unwrap();
            let (accepted, name) = first.accept().await.unwrap();
            assert!(
                matches!(accepted, Accepted::Unix(_)),
                "the first one serves"
            );
            assert!(name.starts_with("process "), "{name}");
        });
        drop(first);
        assert!(!path.exists());

        fs::write(&path, "precious").unwrap();
        assert_eq!(code(&place), ErrorCode::Exists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let nowhere = Place::Socket(directory.path().join("none/exports"));
        assert_eq!(code(&nowhere), ErrorCode::NotFound);
        let long = Place::Socket(directory.path().join("x".repeat(200)));
        assert_eq!(code(&long), ErrorCode::Invalid);
    }
}
