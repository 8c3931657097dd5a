//! A whole vhost-user device on one thread: commands as its connection would give them, a guest that writes what it
//! likes, and a volume that answers late, in any order, or with errors.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use archipelago_doubles::memory_volumes::MemoryVolumes;
use archipelago_endpoint::{Activity, Driver, ServedVolume, Wakeups, WatchId};
use archipelago_protocol::{ErrorCode, Lineage, ObjectSize, OnFull};
use archipelago_vhost_user::command::Command;
use archipelago_vhost_user::dirty_log::DirtyLog;
use archipelago_vhost_user::fuzzing::{CommandSender, seed};
use archipelago_vhost_user::memory::GuestSlot;
use archipelago_vhost_user::queue::RingAddresses;
use archipelago_vhost_user::{AttachConfig, Device};
use nix::sys::eventfd::{EfdFlags, EventFd};
use xseg::Region;

use crate::input::Input;

const QUEUES: u16 = 2;
const SIZE: usize = 64 << 10;
const MEMORY: usize = 64 << 10;
pub(crate) const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000;
/// Where the rings of the standard start are, each queue's a page behind the other's.
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
const RING: u16 = 8;
/// Turns after which everything must be over: each does a bounded amount, and little is in flight.
const TURNS_MAX: usize = 4096;

thread_local! {
    static MEMORIES: [Region; 2] = [MEMORY, 4096].map(|len| Region::anonymous(len).expect("memory"));
}

/// Nothing to wake: the target polls. Time goes on by 100 us with each look, the same in each run.
#[derive(Default)]
pub(super) struct NoWakeups {
    looks: Cell<u32>,
}

impl Wakeups for NoWakeups {
    fn watch(&mut self, _fd: OwnedFd) -> std::io::Result<WatchId> {
        Ok(WatchId(1))
    }

    fn watch_marked(&mut self, _fd: OwnedFd, _mark: u8) -> std::io::Result<WatchId> {
        Ok(WatchId(1))
    }

    fn take_marks(&mut self) -> u64 {
        u64::MAX
    }

    fn await_writable(&mut self, _id: WatchId, _mark: u8) {}

    fn unwatch(&mut self, _id: WatchId) {}

    fn now(&self) -> Duration {
        self.looks.set(self.looks.get() + 1);
        Duration::from_micros(100) * self.looks.get()
    }

    fn alarm(&mut self, _deadline: Duration) {}
}

struct Rig {
    device: Device<MemoryVolumes, NoWakeups>,
    volumes: MemoryVolumes,
    line: CommandSender,
    memory: Region,
    aux: Region,
    avail: [u16; 2],
    /// Whether the last command waits for its answer: a connection gives one at a time.
    waiting: Box<dyn Fn() -> bool>,
}

fn eventfd() -> OwnedFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .expect("an eventfd")
        .into()
}

impl Rig {
    fn new() -> Rig {
        let volumes = MemoryVolumes::new(SIZE);
        let config = AttachConfig {
            volume: ServedVolume {
                lineage: Lineage(7),
                size: SIZE as u64,
                object_size: ObjectSize::DEFAULT,
                read_only: false,
                serial: "serial".to_owned(),
                on_full: OnFull::default(),
            },
            socket: PathBuf::from("fuzz"),
            socket_mode: AttachConfig::SOCKET_MODE,
            queues: QUEUES,
            start_interval: Duration::ZERO,
        };
        let (line, seed) = seed(config).expect("eventfds");
        let device = seed
            .build(volumes.clone(), NoWakeups::default())
            .expect("nothing is watched");
        let [memory, aux] = MEMORIES.with(Clone::clone);
        for region in [&memory, &aux] {
            region.fill(0, region.len(), 0).expect("all of it");
        }
        Rig {
            device,
            volumes,
            line,
            memory,
            aux,
            avail: [0; 2],
            waiting: Box::new(|| false),
        }
    }

    fn give(&mut self, command: Command) {
        for _ in 0..8 {
            if !(self.waiting)() {
                break;
            }
            self.device.poll();
        }
        if (self.waiting)() {
            return;
        }
        let answer = self.line.send(command);
        let got = RefCell::new(false);
        self.waiting = Box::new(move || {
            let mut got = got.borrow_mut();
            *got |= answer.try_recv().is_ok();
            !*got
        });
        self.device.poll();
    }

    fn slot(&self, input: &mut Input<'_>) -> GuestSlot {
        let start = u64::from(input.u8() & 0xf) << 12;
        let len = (u64::from(input.u8() & 0xf) + 1) << 12;
        GuestSlot {
            guest: GUEST + (u64::from(input.u8() & 0x1f) << 12),
            user: USER + (u64::from(input.u8() & 0x1f) << 12),
            len: len.min(MEMORY as u64 - start),
            region: self.memory.clone(),
            start,
        }
    }

    fn addresses(queue: u16) -> RingAddresses {
        let base = USER + u64::from(queue) * 0x1000;
        RingAddresses {
            descriptors: base,
            avail: base + AVAIL,
            used: base + USED,
            log: None,
        }
    }

    /// What an honest front end does first.
    fn start(&mut self, features: u64) {
        self.give(Command::Connected);
        self.give(Command::Features(features));
        self.give(Command::AddSlot(GuestSlot {
            guest: GUEST,
            user: USER,
            len: MEMORY as u64,
            region: self.memory.clone(),
            start: 0,
        }));
        for queue in 0..QUEUES {
            self.give(Command::RingSize(queue, RING));
            self.give(Command::RingAddresses(queue, Rig::addresses(queue)));
            self.give(Command::Enable(queue, true));
            self.give(Command::Kick(queue, eventfd()));
        }
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let base = 0x1000 * queue as u64 + AVAIL;
        let index = self.avail[queue];
        let order = std::sync::atomic::Ordering::Release;
        let at = base + 4 + 2 * u64::from(index % RING);
        self.memory.store_u16(at, head, order).expect("inside");
        self.avail[queue] = index.wrapping_add(1);
        self.memory
            .store_u16(base + 2, self.avail[queue], order)
            .expect("inside");
    }

    fn command(&mut self, kind: u8, input: &mut Input<'_>) {
        // One more than there are, now and then.
        let queue = u16::from(input.u8()) % (QUEUES + 1);
        let command = match kind {
            0 => Command::Connected,
            1 => Command::Features(input.u64()),
            2 => Command::AddSlot(self.slot(input)),
            3 => {
                let GuestSlot {
                    guest, user, len, ..
                } = self.slot(input);
                Command::RemoveSlot { guest, user, len }
            }
            4 => {
                let count = input.u8() & 3;
                Command::SetSlots((0..count).map(|_| self.slot(input)).collect())
            }
            5 => Command::RingSize(queue, input.u16()),
            6 => {
                let mut near = || USER + u64::from(input.u16());
                let (descriptors, avail, used) = (near(), near(), near());
                // Bounded by the connection's thread.
                let log = Some(input.u64() >> 8).filter(|log| log & 1 == 1);
                Command::RingAddresses(
                    queue,
                    RingAddresses {
                        descriptors,
                        avail,
                        used,
                        log,
                    },
                )
            }
            7 => Command::RingBase(queue, input.u16()),
            8 => Command::StopRing(queue),
            9 => Command::Kick(queue, eventfd()),
            10 => Command::Call(queue, (input.u8() & 1 == 0).then(|| File::from(eventfd()))),
            11 => Command::Error(queue, (input.u8() & 1 == 0).then(|| File::from(eventfd()))),
            12 => Command::Enable(queue, input.u8() & 1 == 0),
            13 => {
                let fd = self.aux.descriptor().0.try_clone().expect("a descriptor");
                let (offset, len) = (u64::from(input.u16() % 4096), u64::from(input.u16() % 4096));
                match DirtyLog::map(File::from(fd), offset, len) {
                    Ok(log) => Command::Log(log),
                    Err(_refused) => return,
                }
            }
            14 => Command::InFlight {
                region: self.aux.clone(),
                start: u64::from(input.u16() % 4096),
                queues: u16::from(input.u8()),
                size: input.u16(),
            },
            15 => Command::Reset,
            _ => Command::Disconnected,
        };
        self.give(command);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() {
            kind @ 0..=31 => self.command(kind % 17, input),
            kind @ 32..=95 => {
                let region = if kind & 1 == 0 {
                    &self.memory
                } else {
                    &self.aux
                };
                let at = u64::from(input.u16()) % region.len();
                let len = usize::from(input.u8());
                let bytes = input.take(len);
                // What would not fit is not written.
                let _outside = region.write(at, bytes);
            }
            kind @ 96..=159 => {
                let head = u16::from(input.u8()) % (RING + 1);
                self.offer(usize::from(kind & 1), head);
            }
            160..=191 => {
                let mut state = self.volumes.state();
                if !state.held.is_empty() {
                    let index = input.below(state.held.len());
                    state.release(index);
                }
            }
            kind @ 192..=207 => {
                let mut state = self.volumes.state();
                state.hold = kind & 1 != 0;
                state.fail = (kind & 2 != 0).then_some(ErrorCode::Io);
                state.credits = (kind & 4 != 0).then_some(usize::from(kind >> 3 & 1));
                state.fail_open = (kind & 8 != 0).then_some(ErrorCode::InUse);
            }
            208..=223 => {
                if self.device.prepare_sleep() != Activity::Ready {
                    self.device.poll();
                }
                self.device.wake();
            }
            _ => {
                self.device.poll();
            }
        }
    }

    /// The front end is gone: whatever it did, everything is given back.
    fn end(mut self) {
        {
            let mut state = self.volumes.state();
            (state.hold, state.credits) = (false, None);
            while !state.held.is_empty() {
                state.release(0);
            }
        }
        for command in [Command::Disconnected, Command::Detach] {
            for _ in 0..TURNS_MAX {
                if !(self.waiting)() {
                    break;
                }
                self.device.poll();
            }
            assert!(!(self.waiting)(), "a command was never answered");
            self.give(command);
        }
        for _ in 0..TURNS_MAX {
            self.device.poll();
        }
        assert!(self.device.is_finished(), "the device never ended");
        let state = self.volumes.state();
        assert_eq!(state.regions(), 0, "regions that were kept");
        assert!(!state.open, "a volume that was kept open");
    }
}

pub(crate) fn device(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut rig = Rig::new();
    // VERSION_1, PROTOCOL_FEATURES, INDIRECT_DESC, CONFIG_WCE, FLUSH; and each of EVENT_IDX and LOG_ALL or not.
    let features = 1 << 32 | 1 << 30 | 1 << 28 | 1 << 11 | 1 << 9;
    match input.u8() {
        0 => {}
        more => rig.start(features | u64::from(more & 1) << 29 | u64::from(more >> 1 & 1) << 26),
    }
    while !input.is_empty() {
        rig.step(&mut input);
    }
    rig.end();
}
