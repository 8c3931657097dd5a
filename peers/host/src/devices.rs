//! What the control threads do themselves: devices are made and ended beside the data thread.
//!
//! Ending a device waits for the data thread, so it must not happen on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use archipelago_protocol::control::{ControlReply, ControlRequest, DeviceProblem, PeerStatus};
use archipelago_protocol::{Error, ErrorCode, Lineage};
use archipelago_runtime::Handle;
use archipelago_vhost_user::{AttachConfig, Counters, Detach, Endpoint};

use crate::control::{Answer, ask};
use crate::descriptors::Budget;
use crate::host::Job;
use crate::{Identity, PeerSettings};

/// The devices of a process, and the way to its data thread.
#[derive(Debug, Clone)]
pub(crate) struct Devices {
    jobs: Sender<Job>,
    handle: Handle,
    /// Mode bits of the devices' sockets.
    socket_mode: u32,
    budget: Budget,
    /// Held while a device is made, not while one ends: that may take as long as storage does not answer.
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    endpoints: BTreeMap<Lineage, Endpoint>,
    /// Those that are being ended.
    leaving: BTreeSet<Lineage>,
}

impl Devices {
    pub(crate) fn new(jobs: Sender<Job>, handle: Handle, settings: &PeerSettings) -> Devices {
        Devices {
            jobs,
            handle,
            socket_mode: settings
                .endpoint
                .map_or(AttachConfig::SOCKET_MODE, Identity::socket_mode),
            budget: Budget::own(),
            known: Arc::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, job: Job) {
        // A data thread that has ended takes the process with it; whoever waits for an answer sees that.
        let _ended = self.jobs.send(job);
        // An empty call: only to wake the thread.
        let _ended = self.handle.call(|_context| ());
    }

    /// Carries a request out, or hands it to the data thread.
    pub(crate) fn deliver(&self, request: ControlRequest, answer: Answer) {
        match request {
            ControlRequest::Attach {
                lineage,
                size,
                object_size,
                socket,
                queues,
                read_only,
                serial,
                on_full,
            } => {
                let config = AttachConfig {
                    lineage,
                    size,
                    object_size,
                    socket,
                    socket_mode: self.socket_mode,
                    queues,
                    read_only,
                    serial,
                    on_full,
                    start_interval: AttachConfig::START_INTERVAL,
                };
                answer.result(self.attach(config));
            }
            ControlRequest::Resized { lineage, size } => {
                if let Some(endpoint) = self.known().endpoints.get(&lineage) {
                    endpoint.resized(size);
                }
                self.send(Job::Request(
                    ControlRequest::Resized { lineage, size },
                    answer,
                ));
            }
            ControlRequest::Detach { lineage, force } => answer.result(self.detach(lineage, force)),
            ControlRequest::Status => answer.send(self.status()),
            ControlRequest::Stop => {
                self.detach_all();
                self.send(Job::Request(ControlRequest::Stop, answer));
            }
            other => self.send(Job::Request(other, answer)),
        }
    }

    /// What the data thread says, and the figures of each device.
    fn status(&self) -> ControlReply {
        let peers = ask(|answer| self.send(Job::Request(ControlRequest::Status, answer)));
        let Some(ControlReply::Status(mut status)) = peers else {
            return ControlReply::Failed(Error::new(
                ErrorCode::Unavailable,
                "the data thread has ended",
            ));
        };
        // A device that is just made holds the lock for as long as that takes: figures do not wait for it.
        if let Ok(known) = self.known.try_lock() {
            status.peers.extend(
                known
                    .endpoints
                    .iter()
                    .map(|(lineage, endpoint)| device_status(*lineage, &endpoint.status())),
            );
            status.problems = problems(&known.endpoints);
        }
        ControlReply::Status(status)
    }

    fn attach(&self, config: AttachConfig) -> Result<(), Error> {
        let mut known = self.known();
        let lineage = config.lineage;
        if known.endpoints.contains_key(&lineage) {
            drop(known);
            // An earlier change of it may not have come through.
            let policy = config.on_full;
            let request = ControlRequest::OnFull { lineage, policy };
            return done(ask(|answer| self.send(Job::Request(request, answer))));
        }
        if known.leaving.contains(&lineage) {
            return Err(Error::new(
                ErrorCode::InUse,
                "the volume is still being detached: its last requests are not answered",
            )
            .with_hint("`node status` shows whether the storage hangs; attach it again later"));
        }
        let attached = known.endpoints.values();
        self.budget.admit(
            attached.map(|endpoint| endpoint.config().queues),
            config.queues,
        )?;
        let (endpoint, seed) = Endpoint::attach(config)?;
        done(ask(|answer| self.send(Job::Device(Box::new(seed), answer))))?;
        known.endpoints.insert(lineage, endpoint);
        Ok(())
    }

    fn detach(&self, lineage: Lineage, force: bool) -> Result<(), Error> {
        let endpoint = {
            let mut known = self.known();
            if known.leaving.contains(&lineage) {
                let message = "it is being detached by another request already";
                return Err(Error::new(ErrorCode::InUse, message).with_hint(
                    "its last requests are not answered yet: `node status` shows whether the storage hangs",
                ));
            }
            let Some(endpoint) = known.endpoints.remove(&lineage) else {
                return Err(Error::new(
                    ErrorCode::NotFound,
                    "the volume is not attached here",
                ));
            };
            known.leaving.insert(lineage);
            endpoint
        };
        let ended = endpoint.detach(if force {
            Detach::Force
        } else {
            Detach::IfUnused
        });
        let mut known = self.known();
        known.leaving.remove(&lineage);
        ended.map_err(|(endpoint, error)| {
            known.endpoints.insert(lineage, endpoint);
            error
        })
    }

    fn detach_all(&self) {
        let endpoints = std::mem::take(&mut self.known().endpoints);
        for (lineage, endpoint) in endpoints {
            if let Err((_, error)) = endpoint.detach(Detach::Force) {
                tracing::warn!("detaching {lineage}: {error}");
            }
        }
    }
}

/// What the data thread made of a device.
fn done(reply: Option<ControlReply>) -> Result<(), Error> {
    match reply {
        Some(ControlReply::Done) => Ok(()),
        Some(ControlReply::Failed(error)) => Err(error),
        _ => Err(Error::new(
            ErrorCode::Internal,
            "the data thread did not take the device",
        )),
    }
}

/// What keeps guests from being served.
fn problems(endpoints: &BTreeMap<Lineage, Endpoint>) -> Vec<DeviceProblem> {
    let problem = |(lineage, endpoint): (&Lineage, &Endpoint)| {
        endpoint.problem().map(|problem| DeviceProblem {
            lineage: *lineage,
            what: problem.to_string(),
        })
    };
    endpoints.iter().filter_map(problem).collect()
}

/// Figures of the device of `lineage`: the daemon, which knows names, puts the name in its place.
fn device_status(lineage: Lineage, counters: &Counters) -> PeerStatus {
    let counters = [
        ("in_flight", counters.in_flight),
        ("reads", counters.reads),
        ("writes", counters.writes),
        ("flushes", counters.flushes),
        ("discards", counters.discards),
        ("write_zeroes", counters.write_zeroes),
        ("others", counters.others),
        ("read_bytes", counters.read_bytes),
        ("written_bytes", counters.written_bytes),
        ("errors", counters.errors),
        ("errors_refused", counters.errors_refused),
        ("errors_not_open", counters.errors_not_open),
        ("errors_no_space", counters.errors_no_space),
        ("errors_io", counters.errors_io),
        ("errors_sync_failed", counters.errors_sync_failed),
        ("errors_stale", counters.errors_stale),
        ("errors_unavailable", counters.errors_unavailable),
        ("errors_other", counters.errors_other),
        ("unsupported", counters.unsupported),
        ("malformed", counters.malformed),
        ("broken_rings", counters.broken_rings),
        ("kicks", counters.kicks),
        ("calls", counters.calls),
        ("calls_suppressed", counters.calls_suppressed),
        ("resubmitted", counters.resubmitted),
        ("held_back", counters.held_back),
        ("rests", counters.rests),
        ("open_failures", counters.open_failures),
        ("connections", counters.connections),
    ];
    PeerStatus {
        name: device_name(&lineage),
        counters: counters
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    }
}

/// Name of the device of a volume, by its lineage or, for people, by its name.
#[must_use]
pub fn device_name(volume: &impl std::fmt::Display) -> String {
    format!("vhost-user:{volume}")
}
