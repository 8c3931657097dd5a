//! A data process of the node: how it is started, asked and kept alive.
//!
//! Invariants
//! - The daemon owns the listening control socket and passes it to each incarnation of the process as its standard input: a
//!   request that comes while the process is down waits in the socket's queue for the next incarnation.
//! - Each request has a connection of its own. A connection that ends before the answer means that the process died meanwhile.
//! - The kernel kills a process whose daemon dies (`PR_SET_PDEATHSIG`), so two incarnations never run side by side for long.
//!   The pool's lock fences the I/O of a dead one.

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use archipelago_api::layout::path_error;
use archipelago_blocker_file::Claim;
use archipelago_host::PeerSettings;
use archipelago_protocol::control::{ControlReply, ControlRequest, LINE_LEN_MAX, Role};
use archipelago_protocol::{Error, ErrorCode};
use nix::fcntl::OFlag;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::node_pool::NodePool;
use crate::rados_program;

/// Whether a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunState {
    /// Between two incarnations, or before the first one.
    NotRunning,
    /// Running, with this process id.
    Running(u32),
    /// Ended for good: the node is stopping.
    Ended,
}

/// Why an answer did not come.
#[derive(Debug)]
pub(crate) enum AskError {
    /// The process died over the request: it may or may not have been carried out.
    Lost,
    /// No answer in time, or none that makes sense.
    Failed(Error),
}

/// Why the last incarnation ended unexpectedly or could not start.
#[derive(Debug, Clone)]
pub(crate) struct LastEnd {
    pub(crate) error: Error,
    pub(crate) at: Instant,
}

/// Whether an incarnation takes the pool over from another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TakeOver {
    No,
    /// The next one.
    Next,
    /// The one that runs.
    Now,
}

/// One process and its control socket.
#[derive(Debug)]
pub(crate) struct Process {
    title: String,
    roles: Vec<Role>,
    socket: PathBuf,
    listener: UnixListener,
    /// The socket's inode: leads there also when its name has been removed.
    inode: File,
    settings: PeerSettings<NodePool>,
    run_state: watch::Sender<RunState>,
    restarts: watch::Sender<u64>,
    /// Whether an incarnation of it has had the pool open.
    has_opened: watch::Sender<bool>,
    take_over: watch::Sender<TakeOver>,
    last_end: watch::Sender<Option<LastEnd>>,
}

impl Process {
    /// Prepares the process that hosts `roles`, asked at `socket` and called `title` in messages; nothing runs yet.
    pub(crate) fn new(
        title: String,
        socket: PathBuf,
        roles: Vec<Role>,
        settings: PeerSettings<NodePool>,
    ) -> Result<Process, Error> {
        let listener = crate::socket::listen(&socket)?;
        let inode = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_PATH.bits())
            .open(&socket)
            .map_err(|error| path_error(&socket, &error))?;
        Ok(Process {
            title,
            roles,
            socket,
            listener,
            inode,
            settings,
            run_state: watch::Sender::new(RunState::NotRunning),
            restarts: watch::Sender::new(0),
            has_opened: watch::Sender::new(false),
            take_over: watch::Sender::new(TakeOver::No),
            last_end: watch::Sender::new(None),
        })
    }

    pub(crate) fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// Its pool and roles as they stand in logs.
    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// Its control socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn run_state(&self) -> watch::Receiver<RunState> {
        self.run_state.subscribe()
    }

    pub(crate) fn pid(&self) -> u32 {
        match *self.run_state.borrow() {
            RunState::Running(pid) => pid,
            RunState::NotRunning | RunState::Ended => 0,
        }
    }

    pub(crate) fn restarts(&self) -> u64 {
        *self.restarts.borrow()
    }

    pub(crate) fn set_run_state(&self, state: RunState) {
        if state == RunState::NotRunning && *self.take_over.borrow() == TakeOver::Now {
            self.take_over.send_replace(TakeOver::No);
        }
        self.run_state.send_replace(state);
    }

    pub(crate) fn count_restart(&self) {
        self.restarts.send_modify(|count| *count += 1);
    }

    /// Notes that this incarnation has the pool open: the next ones are its successors.
    pub(crate) fn note_opened(&self) {
        self.has_opened.send_replace(true);
    }

    /// The next incarnation takes the pool over from whoever has not released it, as a person has said.
    pub(crate) fn take_over_next(&self) {
        self.take_over.send_replace(TakeOver::Next);
    }

    /// Whether that incarnation is still to come, or has not ended.
    pub(crate) fn takes_over(&self) -> bool {
        *self.take_over.borrow() != TakeOver::No
    }

    /// The last unexpected end.
    pub(crate) fn last_end(&self) -> Option<LastEnd> {
        self.last_end.borrow().clone()
    }

    /// Stores why an incarnation ended.
    pub(crate) fn set_last_end(&self, error: Error) {
        let at = Instant::now();
        self.last_end.send_replace(Some(LastEnd { error, at }));
    }

    /// The program of the process: this one, unless it hosts the blocker of a pool that another one opens.
    fn program(&self) -> PathBuf {
        if let (NodePool::Rados(_), true) =
            (&self.settings.pool, self.roles.contains(&Role::Blocker))
        {
            return rados_program::path();
        }
        // A program that was replaced by an update has no path any more; the others are of the old version too.
        std::env::current_exe()
            .ok()
            .filter(|path| path.exists())
            .unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
    }

    /// Starts an incarnation of the process.
    ///
    /// The caller is the main thread: the kernel ties the child's death to the thread that started it.
    pub(crate) fn spawn(&self) -> std::io::Result<Child> {
        let program = self.program();
        let listener: OwnedFd = self.listener.try_clone()?.into();
        let mut settings = self.settings.clone();
        // An incarnation that could not open the pool has no successor: whoever owned the pool meanwhile has taken nothing from it.
        // What a person knew of another owner was true for one incarnation.
        let takes_over = *self.take_over.borrow() == TakeOver::Next;
        if takes_over {
            self.take_over.send_replace(TakeOver::Now);
        }
        if *self.has_opened.borrow() {
            settings.pool.set_claim(Claim::Restart);
        } else if takes_over {
            settings.pool.set_claim(Claim::TakeOver);
        } else if self.restarts() > 0 {
            settings.pool.set_claim(Claim::Start);
        }
        let settings = serde_json::to_string(&settings).map_err(std::io::Error::other)?;
        let mut command = Command::new(program);
        command
            .arg("peer")
            .arg("--parent")
            .arg(std::process::id().to_string())
            .arg("--settings")
            .arg(settings);
        for role in &self.roles {
            command.arg("--role").arg(role.name());
        }
        // A group of its own: ^C in the daemon's terminal must reach only the daemon, which stops peers in order.
        command
            .stdin(Stdio::from(listener))
            // For its last words; it says nothing else there.
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    /// Why the process has ended, while it does not run.
    pub(crate) fn absence(&self) -> Option<Error> {
        let end = self.last_end().filter(|_end| self.pid() == 0)?;
        let message = format!("the {} process does not run: {}", self.title(), end.error);
        Some(Error::new(end.error.code, message).with_hint(end.error.hint))
    }

    /// Asks the process and waits up to `timeout` for its answer.
    pub(crate) async fn ask(
        &self,
        request: &ControlRequest,
        timeout: Duration,
    ) -> Result<ControlReply, AskError> {
        self.ask_passing(request, None, timeout).await
    }

    /// The same, and passes the process a descriptor.
    pub(crate) async fn ask_with(
        &self,
        request: &ControlRequest,
        descriptor: OwnedFd,
        timeout: Duration,
    ) -> Result<ControlReply, AskError> {
        self.ask_passing(request, Some(descriptor), timeout).await
    }

    async fn ask_passing(
        &self,
        request: &ControlRequest,
        descriptor: Option<OwnedFd>,
        timeout: Duration,
    ) -> Result<ControlReply, AskError> {
        match tokio::time::timeout(timeout, self.exchange(request, descriptor)).await {
            Ok(answer) => answer,
            Err(_late) => Err(AskError::Failed(Error::new(
                ErrorCode::Unavailable,
                format!(
                    "the {} process did not answer within {} s",
                    self.title(),
                    timeout.as_secs()
                ),
            ))),
        }
    }

    async fn connect(&self) -> std::io::Result<UnixStream> {
        let by_inode = format!("/proc/self/fd/{}", self.inode.as_raw_fd());
        match UnixStream::connect(by_inode).await {
            // Without /proc.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                UnixStream::connect(&self.socket).await
            }
            connected => connected,
        }
    }

    async fn exchange(
        &self,
        request: &ControlRequest,
        descriptor: Option<OwnedFd>,
    ) -> Result<ControlReply, AskError> {
        let unreachable = |error: std::io::Error| {
            AskError::Failed(Error::new(
                ErrorCode::Unavailable,
                format!("{}: {error}", self.socket.display()),
            ))
        };
        let mut stream = self.connect().await.map_err(unreachable)?;
        let mut line = serde_json::to_vec(request).expect("requests have string keys");
        line.push(b'\n');
        let mut sent = 0;
        if let Some(descriptor) = descriptor {
            let passed = pass(&stream, &line, &descriptor).await;
            sent = passed.map_err(|_hung_up| AskError::Lost)?;
        }
        stream
            .write_all(&line[sent..])
            .await
            .map_err(|_hung_up| AskError::Lost)?;
        let mut answer = Vec::new();
        let mut reader = BufReader::new(tokio::io::AsyncReadExt::take(stream, LINE_LEN_MAX));
        reader
            .read_until(b'\n', &mut answer)
            .await
            .map_err(|_hung_up| AskError::Lost)?;
        if answer.last() != Some(&b'\n') {
            return Err(AskError::Lost);
        }
        serde_json::from_slice(&answer).map_err(|error| {
            AskError::Failed(Error::new(
                ErrorCode::Internal,
                format!("the {} process answers nonsense: {error}", self.title()),
            ))
        })
    }
}

/// Sends the first bytes of `line`, and `descriptor` with them: how many.
async fn pass(stream: &UnixStream, line: &[u8], descriptor: &OwnedFd) -> std::io::Result<usize> {
    let send = || {
        let numbers = [descriptor.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&numbers)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let parts = [IoSlice::new(line)];
        Ok(sendmsg::<()>(
            stream.as_raw_fd(),
            &parts,
            &rights,
            flags,
            None,
        )?)
    };
    stream.async_io(Interest::WRITABLE, send).await
}
