//! The endpoint in a data process: the volume peer, the drivers and the bulk copies that use it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use archipelago_endpoint::{Seed, Shortage};
use archipelago_protocol::control::{ChannelStatus, PeerStatus, Wait};
use archipelago_protocol::{Error, ErrorCode, Lineage, OnFull};
use archipelago_runtime::{Peer, Progress};
use archipelago_segment::{BULK_ROLE, BulkServer, BulkStep, loss_marker};
use archipelago_volume::{ControlEvent, Shared, VolumePeer, WaitsFor};
use xseg::shared::{Admission, Listener};
use xseg::{Client, Server};

use crate::channel_status::channel_status;
use crate::control::Answer;
use crate::event_loop::{EventLoop, LoopWakeups, WatchId};
use crate::port::{Attention, HostedServer};
use crate::readiness::{DriverId, Drivers};

/// If no client connects to an open volume's channel for this long, the volume is closed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Most volumes that are open over segment channels: each channel takes some descriptors and some MiB.
const BULKS_MAX: usize = 64;

type Volumes = Shared<Client, Client>;

/// From this the data thread makes a driver.
pub(crate) type DriverSeed = Box<dyn Seed<Volumes, LoopWakeups>>;

/// Why a volume waits, or does not wait any more, as a text for the log.
fn without_space(waits_for: WaitsFor) -> &'static str {
    match waits_for {
        WaitsFor::Writes => "writes wait for space in the pool",
        WaitsFor::Session => "its open waits for space in the pool",
        WaitsFor::Descriptor => "requests wait for a file descriptor (LimitNOFILE of the service)",
        WaitsFor::Memory => "requests wait for memory",
        WaitsFor::RunDirectory => {
            "writes wait for space in the run directory, for its presence journal"
        }
        WaitsFor::Nothing => "without space in the pool its guest gets I/O errors",
    }
}

/// A bulk copy and its socket.
#[derive(Debug)]
struct Bulk {
    lineage: Lineage,
    server: BulkServer<HostedServer>,
    socket: PathBuf,
    listener: Listener,
    watches: Vec<WatchId>,
    /// Set until the volume is open.
    answer: Option<Answer>,
    since: Duration,
}

/// The volume peer and its drivers.
pub(crate) struct EndpointHost {
    volumes: Volumes,
    drivers: Drivers,
    /// Drivers that were signalled; kept to use its memory again.
    woken: Vec<DriverId>,
    bulks: Vec<Bulk>,
    snapshots: VecDeque<(u64, Answer)>,
    next_snapshot: u64,
    events: Rc<RefCell<EventLoop>>,
    attention: Attention,
}

impl EndpointHost {
    pub(crate) fn new(
        mapper: Client,
        blocker: Client,
        events: &Rc<RefCell<EventLoop>>,
        attention: &Attention,
    ) -> Result<EndpointHost, Error> {
        Ok(EndpointHost {
            volumes: Shared::new(VolumePeer::new(mapper, blocker)?),
            drivers: Drivers::default(),
            woken: Vec::new(),
            bulks: Vec::new(),
            snapshots: VecDeque::new(),
            next_snapshot: 1,
            events: Rc::clone(events),
            attention: attention.clone(),
        })
    }

    /// Serves an endpoint that a thread of control has prepared.
    pub(crate) fn add(&mut self, seed: DriverSeed) -> Result<(), Error> {
        let (volumes, events) = (self.volumes.clone(), &self.events);
        self.drivers
            .add(|id| seed.build(volumes, LoopWakeups::new(events, id)))
            .map_err(|error| Error::new(ErrorCode::Io, format!("watching an endpoint: {error}")))
    }

    /// Snapshots an open volume; the answer follows later.
    pub(crate) fn snapshot(&mut self, lineage: Lineage, token: u64, answer: Answer) {
        let id = self.next_snapshot;
        self.next_snapshot += 1;
        self.snapshots.push_back((id, answer));
        self.volumes.snapshot(lineage, token, id);
    }

    /// Reports a new size from the catalogue.
    pub(crate) fn resized(&mut self, lineage: Lineage, size: u64) {
        self.volumes.resized(lineage, size);
        self.drivers.change(lineage, |_collects_the_event| ());
    }

    /// Sets another policy for a full pool, for waiting and later requests.
    pub(crate) fn set_on_full(&mut self, lineage: Lineage, policy: OnFull) {
        self.drivers
            .change(lineage, |driver| driver.set_on_full(policy));
    }

    /// Opens a volume for a bulk copy; answers when it is open.
    pub(crate) fn open_bulk(
        &mut self,
        lineage: Lineage,
        write: bool,
        on_full: OnFull,
        socket: &Path,
        answer: Answer,
    ) {
        if self.bulks.len() >= BULKS_MAX {
            return answer.fail(
                Error::new(
                    ErrorCode::Unavailable,
                    format!("{BULKS_MAX} volumes are open for imports, exports, mounts and other programs already"),
                )
                .with_hint("try again when one of them is closed"),
            );
        }
        let admission = Admission::own([BULK_ROLE]);
        let listener = Listener::bind(socket, admission).and_then(|listener| {
            self.events
                .borrow_mut()
                .watch(listener.fd())
                .map(|watch| (listener, watch))
        });
        match listener {
            Ok((listener, watch)) => self.bulks.push(Bulk {
                lineage,
                server: BulkServer::open(&mut self.volumes, lineage, write, on_full),
                socket: socket.to_owned(),
                listener,
                watches: vec![watch],
                answer: Some(answer),
                since: self.events.borrow().now(),
            }),
            Err(error) => answer.fail(Error::new(
                ErrorCode::Io,
                format!("{}: {error}", socket.display()),
            )),
        }
    }

    /// Ends all bulk copies: the process stops.
    pub(crate) fn give_up(&mut self) {
        for bulk in &mut self.bulks {
            bulk.server.give_up(&mut self.volumes);
        }
    }

    /// Whether every endpoint and bulk copy has ended.
    pub(crate) fn is_idle(&self) -> bool {
        self.drivers.len() == 0 && self.bulks.is_empty() && self.snapshots.is_empty()
    }

    /// Services sockets: new clients of bulk copies, and the connections of ports.
    pub(crate) fn service(&mut self) {
        self.volumes.with(|peer| {
            let (mapper, blocker) = peer.ports_mut();
            while mapper.service() {}
            while blocker.service() {}
        });
        let now = self.events.borrow().now();
        self.volumes.with(|peer| peer.look_for_space(now));
        for bulk in &mut self.bulks {
            while let Some(mut port) = bulk.listener.accept() {
                if !bulk.server.is_waiting() {
                    continue;
                }
                let mut events = self.events.borrow_mut();
                bulk.watches.extend(
                    port.fds()
                        .into_iter()
                        .filter_map(|fd| events.watch(fd).ok()),
                );
                drop(events);
                port.start();
                bulk.server.connect(
                    &mut self.volumes,
                    HostedServer::new(Server::from(port), &self.attention),
                );
            }
            if bulk.server.is_waiting() && now.saturating_sub(bulk.since) > CONNECT_TIMEOUT {
                tracing::warn!("nobody came to {} for a bulk copy", bulk.socket.display());
                bulk.server.give_up(&mut self.volumes);
            }
        }
    }

    /// The volumes that are open over segment channels, once for each.
    pub(crate) fn channels_to(&self) -> Vec<Lineage> {
        self.bulks.iter().map(|bulk| bulk.lineage).collect()
    }

    /// Whether all servers are connected.
    pub(crate) fn is_connected(&self) -> bool {
        use xseg::ClientPort;
        self.volumes
            .with(|peer| peer.mapper_port().is_connected() && peer.blocker_port().is_connected())
    }

    /// Whether some volume waits for space.
    pub(crate) fn waits_for_space(&self) -> bool {
        self.volumes.with(|peer| peer.waits_for_space())
    }

    /// The volumes that wait for space.
    pub(crate) fn waits(&self) -> Vec<Wait> {
        let now = self.events.borrow().now();
        let wait = |(lineage, waits_for, waited): (Lineage, WaitsFor, Duration)| Wait {
            lineage,
            what: without_space(waits_for).to_owned(),
            seconds: waited.as_secs(),
        };
        let mut waits: Vec<Wait> = self
            .volumes
            .with(|peer| peer.without_space(now).map(wait).collect());
        // Volumes that are not open, so that the volume peer does not report them.
        let drivers = self.drivers.iter();
        waits.extend(drivers.filter_map(|driver| {
            let (shortage, since) = driver.shortage()?;
            let what = match shortage {
                Shortage::Waits => "its open waits for a place among the open volumes",
                Shortage::Reported => without_space(WaitsFor::Nothing),
            };
            Some(Wait {
                lineage: driver.lineage(),
                what: what.to_owned(),
                seconds: now.saturating_sub(since).as_secs(),
            })
        }));
        waits
    }

    /// Figures of the volume peer, and its channels.
    pub(crate) fn status(&self) -> (Vec<PeerStatus>, Vec<ChannelStatus>) {
        let endpoint = PeerStatus {
            name: "endpoint".to_owned(),
            counters: vec![
                ("devices".to_owned(), self.drivers.len() as u64),
                ("bulk_copies".to_owned(), self.bulks.len() as u64),
            ],
        };
        let channels = self.volumes.with(|peer| {
            vec![
                channel_status("volume", "mapper", peer.mapper_port()),
                channel_status("volume", "blocker", peer.blocker_port()),
            ]
        });
        (vec![endpoint, self.volumes.status()], channels)
    }

    fn poll_bulks(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        let mut index = 0;
        while index < self.bulks.len() {
            let bulk = &mut self.bulks[index];
            let step = bulk.server.poll(&mut self.volumes);
            if !matches!(step, BulkStep::Idle) {
                progress = Progress::Busy;
            }
            let ended = match step {
                BulkStep::Idle | BulkStep::Busy => false,
                BulkStep::Opened(result) => {
                    let failed = result.is_err();
                    bulk.since = self.events.borrow().now();
                    if let Some(answer) = bulk.answer.take() {
                        answer.result(result);
                    }
                    failed
                }
                BulkStep::Ended { lost } => {
                    let marker = loss_marker(&bulk.socket);
                    // The socket itself becomes the marker: nobody can use it any more, and it takes no space. A daemon that has started
                    // meanwhile may
                    // have removed it.
                    let marked = || {
                        std::fs::rename(&bulk.socket, &marker)
                            .or_else(|_removed| std::fs::File::create(&marker).map(drop))
                    };
                    if lost && let Err(error) = marked() {
                        tracing::error!(
                            "{}: {error}: a loss is not reported to its client",
                            marker.display()
                        );
                    }
                    true
                }
            };
            if ended {
                let bulk = self.bulks.swap_remove(index);
                bulk.watches
                    .iter()
                    .for_each(|watch| self.events.borrow_mut().unwatch(*watch));
                // A socket that has no use any more; it may be removed already.
                let _removed = std::fs::remove_file(&bulk.socket);
            } else {
                index += 1;
            }
        }
        progress
    }

    fn take_control_events(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        while let Some(event) = self.volumes.next_control_event() {
            progress = Progress::Busy;
            let (id, result) = match event {
                ControlEvent::Resized { lineage } => {
                    self.drivers.change(lineage, |_collects_the_event| ());
                    continue;
                }
                ControlEvent::SnapshotDone { id, result, .. } => (id, result),
                ControlEvent::NoSpace {
                    lineage,
                    waits_for,
                    policy,
                } => {
                    let what = without_space(waits_for);
                    tracing::warn!("volume {lineage}: {what} (on full: {policy})");
                    continue;
                }
                ControlEvent::SpaceFound { lineage } => {
                    tracing::info!("volume {lineage}: there is space again, its writes are served");
                    continue;
                }
            };
            let index = self.snapshots.iter().position(|(known, _)| *known == id);
            if let Some((_, answer)) = index.and_then(|index| self.snapshots.remove(index)) {
                answer.result(result);
            }
        }
        progress
    }
}

impl Peer for EndpointHost {
    fn name(&self) -> &str {
        "endpoint"
    }

    fn poll(&mut self) -> Progress {
        self.events.borrow_mut().take_woken(&mut self.woken);
        for id in &self.woken {
            self.drivers.signal(*id);
        }
        let progress = self
            .volumes
            .poll()
            .or(self.drivers.poll())
            .or(self.poll_bulks())
            .or(self.take_control_events())
            .or(self.volumes.poll());
        self.drivers.end_turn(progress);
        progress
    }

    fn prepare_sleep(&mut self) -> bool {
        let mut quiet = self.volumes.prepare_sleep();
        quiet &= self.drivers.prepare_sleep();
        for bulk in &mut self.bulks {
            quiet &= bulk.server.prepare_sleep();
        }
        quiet
    }

    fn wake(&mut self) {
        self.volumes.wake();
        self.drivers.wake();
        for bulk in &mut self.bulks {
            bulk.server.wake();
        }
    }
}
