//! Messages of a front end, through the socket: any bytes, any descriptors.
//!
//! One endpoint serves all inputs, with its threads, as in a data process.

use std::io::{ErrorKind, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use archipelago_doubles::epoll_wakeups::EpollWakeups;
use archipelago_doubles::memory_volumes::MemoryVolumes;
use archipelago_endpoint::{Activity, Driver, ServedVolume};
use archipelago_protocol::{Lineage, ObjectSize, OnFull};
use archipelago_runtime::Progress;
use archipelago_vhost_user::{AttachConfig, Endpoint};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use xseg::Region;

use crate::input::Input;

const SIZE: usize = 1 << 20;
const MEMORY: usize = 64 << 10;
/// Longest wait for the endpoint to hang up; an honest one takes less than a millisecond.
const TIMEOUT: Duration = Duration::from_secs(20);

struct Host {
    endpoint: Endpoint,
    socket: PathBuf,
    thread: JoinHandle<()>,
    memory: Region,
    doorbell: OwnedFd,
    _directory: tempfile::TempDir,
}

static HOST: Mutex<Option<Host>> = Mutex::new(None);

impl Host {
    fn start() -> Host {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("v");
        let config = AttachConfig {
            volume: ServedVolume {
                lineage: Lineage(7),
                size: SIZE as u64,
                object_size: ObjectSize::DEFAULT,
                read_only: false,
                serial: "serial".to_owned(),
                on_full: OnFull::default(),
            },
            socket: socket.clone(),
            socket_mode: AttachConfig::SOCKET_MODE,
            queues: 2,
            start_interval: Duration::ZERO,
        };
        let (endpoint, seed) = Endpoint::attach(config).expect("an endpoint");
        let thread = std::thread::spawn(move || {
            let wakeups = EpollWakeups::new().expect("epoll");
            let signals = wakeups.descriptor().expect("epoll");
            let volumes = MemoryVolumes::new(SIZE);
            let mut device = seed.build(volumes.clone(), wakeups).expect("a device");
            while !device.is_finished() {
                if device.poll() == Progress::Busy {
                    continue;
                }
                if device.prepare_sleep() != Activity::Ready {
                    let signals = signals.try_clone().expect("a descriptor");
                    EpollWakeups::wait(signals, 5_u8.into()).expect("epoll");
                }
                device.wake();
                // What the volume was asked so far: not of interest, and not to grow without end.
                volumes.state().journal.clear();
            }
        });
        let doorbell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        Host {
            endpoint,
            socket,
            thread,
            memory: Region::anonymous(MEMORY).expect("memory"),
            doorbell: doorbell.expect("an eventfd").into(),
            _directory: directory,
        }
    }

    fn send(&self, stream: &UnixStream, input: &mut Input<'_>) -> bool {
        let (request, bits, len) = (input.u8(), input.u8(), input.u8());
        let body = input.take(usize::from(len));
        let version = if bits & 0x10 == 0 { 1 } else { bits >> 5 };
        let need_reply = bits & 4 << 1;
        let flags = u32::from(version | need_reply);
        let told = if bits & 8 == 0 {
            u32::try_from(body.len()).expect("a byte")
        } else {
            input.u32()
        };
        let mut bytes = Vec::with_capacity(12 + body.len());
        for word in [u32::from(request % 48), flags, told] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(body);
        let (memory, doorbell) = (
            self.memory.descriptor().0.as_raw_fd(),
            self.doorbell.as_raw_fd(),
        );
        let fds: &[RawFd] = match bits & 3 {
            0 => &[],
            1 => &[memory],
            2 => &[doorbell],
            _ => &[stream.as_raw_fd(), memory],
        };
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let parts = [IoSlice::new(&bytes)];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(stream.as_raw_fd(), &parts, control, flags, None).is_ok()
    }

    #[expect(clippy::disallowed_methods, reason = "a deadline for other threads")]
    fn serve(&self, bytes: &[u8]) {
        let mut input = Input::new(bytes);
        let mut stream = UnixStream::connect(&self.socket).expect("the endpoint listens");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a socket");
        let ring = usize::from(input.u16());
        self.memory.fill(0, MEMORY as u64, 0).expect("all of it");
        self.memory
            .write(0, input.take(ring))
            .expect("shorter than a half");
        while !input.is_empty() && self.send(&stream, &mut input) {}
        let _gone_already = nix::unistd::write(&self.doorbell, &1_u64.to_le_bytes());
        let _gone_already = stream.shutdown(Shutdown::Write);
        let mut answers = [0; 4096];
        loop {
            match stream.read(&mut answers) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("the endpoint does not hang up: {error}"),
            }
        }
        drop(stream);
        let deadline = Instant::now() + TIMEOUT;
        while self.endpoint.in_use() {
            assert!(!self.thread.is_finished(), "the data thread has ended");
            assert!(
                Instant::now() < deadline,
                "the connection's thread has ended"
            );
            std::thread::yield_now();
        }
        assert!(!self.thread.is_finished(), "the data thread has ended");
    }
}

pub(crate) fn front_end(bytes: &[u8]) {
    let mut host = HOST.lock().unwrap_or_else(PoisonError::into_inner);
    let served = host.take().unwrap_or_else(Host::start);
    served.serve(bytes);
    // A host that failed is not put back: the next input gets a fresh one.
    *host = Some(served);
}
