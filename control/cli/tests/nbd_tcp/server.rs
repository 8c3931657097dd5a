//! The server of a node, and what the tests ask about both.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Node, PLACEMENTS, ended, wait};

/// How long a server may take to end: nothing here takes it long.
const END: Duration = Duration::from_secs(20);

/// A server; killed at the end if it is still there.
#[derive(Debug)]
pub(crate) struct Server {
    child: Option<Child>,
    pub(crate) port: u16,
    /// Where it listens in place of a port.
    socket: Option<PathBuf>,
}

impl Server {
    pub(crate) fn start(node: &Node, arguments: &[&str]) -> Server {
        let programs = std::env::current_exe().unwrap();
        let programs = programs.ancestors().nth(2).unwrap();
        assert!(
            programs.join("archipelago-nbd-tcp").exists(),
            "there is no archipelago-nbd-tcp beside the tests: cargo build -p archipelago-nbd-tcp, with the same profile"
        );
        let mut command = node.command(&["nbd", "serve"]);
        command.args(arguments).stdin(Stdio::null());
        let has_place =
            |argument: &&str| argument.starts_with("--listen") || argument.starts_with("--socket");
        if !arguments.iter().any(has_place) {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut log = File::options();
        log.create(true).append(true);
        let log = log.open(node.path("nbd.log")).unwrap();
        let child = command.stdout(Stdio::piped()).stderr(log).spawn();
        let mut server = Server {
            child: Some(child.unwrap()),
            port: 0,
            socket: None,
        };
        let stdout = server.child.as_mut().unwrap().stdout.take().unwrap();
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let place = line.trim().strip_prefix("listening on ");
        if let Some(path) = place.filter(|place| place.starts_with('/')) {
            server.socket = Some(PathBuf::from(path));
            return server;
        }
        let port = place.and_then(|address| address.rsplit(':').next()?.parse().ok());
        server.port = port.unwrap_or_else(|| panic!("{line:?}: {}", log_of(node)));
        server
    }

    pub(crate) fn uri(&self, export: &str) -> String {
        match &self.socket {
            None => format!("nbd://127.0.0.1:{}/{export}", self.port),
            Some(socket) => format!("nbd+unix:///{export}?socket={}", socket.display()),
        }
    }

    /// A connection to its port.
    pub(crate) fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).unwrap()
    }

    /// A connection to wherever it listens.
    pub(crate) fn client(&self) -> Box<dyn ClientSocket> {
        match &self.socket {
            None => {
                let socket = self.connect();
                socket.set_nodelay(true).unwrap();
                Box::new(socket)
            }
            Some(socket) => Box::new(UnixStream::connect(socket).unwrap()),
        }
    }

    fn pid(&self) -> Pid {
        let id = self.child.as_ref().unwrap().id();
        Pid::from_raw(i32::try_from(id).unwrap())
    }

    /// Bytes of memory that it has.
    pub(crate) fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let mut lines = status.lines();
        let line = lines.find(|line| line.starts_with("VmRSS:")).unwrap();
        let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib << 10
    }

    /// Ends it as an operator does.
    pub(crate) fn end(mut self) {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        let output = ended(self.child.take().unwrap(), "nbd serve", END);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

/// A client's end of a connection, over TCP or at a UNIX socket.
pub(crate) trait ClientSocket: Read + Write + Send + std::fmt::Debug {
    /// Bounds each read from now on.
    fn read_within(&self, time: Duration);
}

impl ClientSocket for TcpStream {
    fn read_within(&self, time: Duration) {
        self.set_read_timeout(Some(time)).unwrap();
    }
}

impl ClientSocket for UnixStream {
    fn read_within(&self, time: Duration) {
        self.set_read_timeout(Some(time)).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// What the servers of `node` have logged.
pub(crate) fn log_of(node: &Node) -> String {
    std::fs::read_to_string(node.path("nbd.log")).unwrap_or_default()
}

/// A node that serves, with `volumes` of these sizes.
pub(crate) fn node_with(placement: &str, volumes: &[(&str, &str)]) -> Node {
    let node = Node::start(placement);
    for (name, size) in volumes {
        node.done(&["volume", "create", name, "--size", size]);
    }
    node
}

/// Waits until nobody has `name` open any more: it can be exported.
pub(crate) fn is_free(node: &Node, name: &str) {
    let target = node.path("free");
    wait("a volume that nobody has open", || {
        let exported = node.output(&["image", "export", name, target.to_str().unwrap()]);
        let _none = std::fs::remove_file(&target);
        exported.status.success()
    });
}

/// Runs `case` in both placements, on a node with `volumes` and a server of `exports`.
pub(crate) fn in_each_placement(
    volumes: &[(&str, &str)],
    exports: &[&str],
    case: impl Fn(&Node, Server),
) {
    for placement in PLACEMENTS {
        println!("{placement}");
        let node = node_with(placement, volumes);
        let server = Server::start(&node, exports);
        case(&node, server);
    }
}
