//! Requests that the control threads carry out themselves: they make and end endpoints beside the data thread.
//!
//! Ending an endpoint waits for the data thread, so it must not happen on it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use archipelago_endpoint::{AttachmentId, Detach, Endpoint, EndpointSpec, ServedVolume};
use archipelago_protocol::control::{
    ControlReply, ControlRequest, DeviceProblem, PeerStatus, ServedAttachment,
};
use archipelago_protocol::{Error, ErrorCode, Lineage};

use crate::control::{Answer, ask};
use crate::descriptors::Budget;
use crate::drivers::DriverSettings;
use crate::host::Job;
use crate::threads::DataThreads;
use crate::{PeerSettings, Pool};

/// The endpoints of a process, and the channels to its data threads.
#[derive(Debug, Clone)]
pub(crate) struct AttachedEndpoints {
    threads: DataThreads,
    drivers: DriverSettings,
    budget: Budget,
    /// Held while an endpoint is made, not while one ends: that takes as long as the storage does not answer.
    known: Arc<Mutex<Known>>,
}

/// An endpoint and its description.
#[derive(Debug)]
struct Attached {
    lineage: Lineage,
    read_only: bool,
    spec: EndpointSpec,
    endpoint: Box<dyn Endpoint>,
}

/// An endpoint that is being ended.
#[derive(Debug)]
struct Leaving {
    lineage: Lineage,
    read_only: bool,
    spec: EndpointSpec,
}

impl Leaving {
    /// Whether a new endpoint of `volume` at `spec` has to wait for its end: for its path, or for the volume. Readers share the volume.
    fn is_in_the_way(&self, volume: &ServedVolume, spec: &EndpointSpec) -> bool {
        let shares = self.read_only && volume.read_only;
        self.spec.path() == spec.path() || (self.lineage == volume.lineage && !shares)
    }
}

#[derive(Debug, Default)]
struct Known {
    endpoints: BTreeMap<AttachmentId, Attached>,
    leaving: BTreeMap<AttachmentId, Leaving>,
}

impl Known {
    /// The attachment of `lineage` at `spec`, if there is one. Its number may differ: a daemon that did not get the answer sends the
    /// request again with another number.
    fn same(&self, lineage: Lineage, spec: &EndpointSpec) -> Option<AttachmentId> {
        let same = |one: &Attached| one.lineage == lineage && one.spec == *spec;
        let mut known = self.endpoints.iter();
        known.find(|(_, one)| same(one)).map(|(id, _)| *id)
    }
}

impl AttachedEndpoints {
    pub(crate) fn new(
        threads: DataThreads,
        settings: &PeerSettings<impl Pool>,
    ) -> AttachedEndpoints {
        AttachedEndpoints {
            threads,
            drivers: DriverSettings::new(settings),
            budget: Budget::own(|limit| settings.pool.descriptors(limit)),
            known: Arc::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries a request out, or passes it to the data thread.
    pub(crate) fn deliver(
        &self,
        request: ControlRequest,
        descriptor: Option<OwnedFd>,
        answer: Answer,
    ) {
        match request {
            ControlRequest::Attach {
                attachment,
                volume,
                endpoint,
            } => answer.result(self.attach(attachment, volume, endpoint, descriptor)),
            ControlRequest::Resized { lineage, size } => {
                let known = self.known();
                let of_volume = |one: &&Attached| one.lineage == lineage;
                for attached in known.endpoints.values().filter(of_volume) {
                    attached.endpoint.resized(size);
                }
                drop(known);
                let request = ControlRequest::Resized { lineage, size };
                self.threads.of(lineage).request(request, answer);
            }
            ControlRequest::Detach { attachment, force } => {
                answer.result(self.detach(attachment, force));
            }
            ControlRequest::Status => answer.send(self.status()),
            ControlRequest::Stop => {
                self.detach_all();
                self.threads.stop(answer);
            }
            ControlRequest::Catalogue(request) => self.threads.catalogue(request, answer),
            ControlRequest::Snapshot { lineage, .. }
            | ControlRequest::OnFull { lineage, .. }
            | ControlRequest::OpenBulk { lineage, .. } => {
                self.threads.of(lineage).request(request, answer);
            }
            ControlRequest::Damage { lineage } => {
                self.threads.question(Some(lineage), request, answer);
            }
            // For an endpoint with a process of its own: that process has one data thread.
            ControlRequest::Grants { .. } => self.threads.first().request(request, answer),
        }
    }

    /// The reports of the data threads, and the figures of each endpoint.
    fn status(&self) -> ControlReply {
        let Some(mut status) = self.threads.status() else {
            return ControlReply::Failed(Error::new(
                ErrorCode::Unavailable,
                "the data thread has ended",
            ));
        };
        // While an endpoint is made, the lock is held: the figures do not wait for it.
        if let Ok(known) = self.known.try_lock() {
            status
                .peers
                .extend(known.endpoints.iter().map(endpoint_status));
            status.problems = problems(known.endpoints.values());
            let served = known.endpoints.iter().map(|(id, one)| ServedAttachment {
                attachment: *id,
                clients: one.endpoint.clients(),
            });
            status.served = Some(served.collect());
        }
        ControlReply::Status(status)
    }

    fn attach(
        &self,
        attachment: AttachmentId,
        volume: ServedVolume,
        spec: EndpointSpec,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), Error> {
        let mut known = self.known();
        let lineage = volume.lineage;
        // The kernel lets a device's queue be open only once, and the present endpoint has it open.
        if descriptor.is_some() && known.same(lineage, &spec).is_some() {
            return Err(Error::new(
                ErrorCode::InUse,
                "another queue of this device is served still",
            ));
        }
        // A writable endpoint must not serve as a read-only one.
        if let Some(stale) = known.same(lineage, &spec)
            && known.endpoints[&stale].read_only != volume.read_only
            && let Some(mut attached) = known.endpoints.remove(&stale)
        {
            attached.endpoint.detach(Detach::Force)?;
        }
        if let Some(same) = known.same(lineage, &spec)
            && let Some(attached) = known.endpoints.remove(&same)
        {
            known.endpoints.insert(attachment, attached);
            drop(known);
            // An earlier change of the policy may have been lost.
            let policy = volume.on_full;
            let request = ControlRequest::OnFull { lineage, policy };
            let thread = self.threads.of(lineage);
            return done(ask(|answer| thread.request(request, answer)));
        }
        let mut leaving = known.leaving.values();
        if leaving.any(|leaving| leaving.is_in_the_way(&volume, &spec)) {
            return Err(Error::new(
                ErrorCode::InUse,
                "the volume is still being detached: its last requests are not answered",
            )
            .with_hint("`node status` shows whether the storage hangs; attach it again later"));
        }
        let attached = known.endpoints.values();
        self.budget
            .admit(attached.map(|one| one.spec.queues()), spec.queues())?;
        let read_only = volume.read_only;
        let (endpoint, seed) = self.drivers.attach(volume, &spec, descriptor)?;
        let thread = self.threads.of(lineage);
        done(ask(|answer| thread.send(Job::Serve(seed, answer))))?;
        known.endpoints.insert(
            attachment,
            Attached {
                lineage,
                read_only,
                spec,
                endpoint,
            },
        );
        Ok(())
    }

    fn detach(&self, attachment: AttachmentId, force: bool) -> Result<(), Error> {
        let mut attached = {
            let mut known = self.known();
            if known.leaving.contains_key(&attachment) {
                let message = "it is being detached by another request already";
                return Err(Error::new(ErrorCode::InUse, message).with_hint(
                    "its last requests are not answered yet: `node status` shows whether the storage hangs",
                ));
            }
            let Some(attached) = known.endpoints.remove(&attachment) else {
                return Err(Error::new(
                    ErrorCode::NotFound,
                    "the volume is not attached here",
                ));
            };
            let leaving = Leaving {
                lineage: attached.lineage,
                read_only: attached.read_only,
                spec: attached.spec.clone(),
            };
            known.leaving.insert(attachment, leaving);
            attached
        };
        let ended = attached.endpoint.detach(if force {
            Detach::Force
        } else {
            Detach::IfUnused
        });
        // An endpoint that has ended is dropped, with its socket, before another one takes its place.
        let kept = match &ended {
            Ok(()) => {
                drop(attached);
                None
            }
            Err(_in_use) => Some(attached),
        };
        let mut known = self.known();
        known.leaving.remove(&attachment);
        known.endpoints.extend(kept.map(|kept| (attachment, kept)));
        ended
    }

    fn detach_all(&self) {
        let endpoints = std::mem::take(&mut self.known().endpoints);
        for mut attached in endpoints.into_values() {
            if let Err(error) = attached.endpoint.detach(Detach::Force) {
                tracing::warn!("detaching {}: {error}", attached.lineage);
            }
        }
    }
}

/// The data thread's result for an endpoint.
fn done(reply: Option<ControlReply>) -> Result<(), Error> {
    match reply {
        Some(ControlReply::Done) => Ok(()),
        Some(ControlReply::Failed(error)) => Err(error),
        _ => Err(Error::new(
            ErrorCode::Internal,
            "the data thread did not take the endpoint",
        )),
    }
}

/// Why guests are not served.
fn problems<'a>(endpoints: impl Iterator<Item = &'a Attached>) -> Vec<DeviceProblem> {
    let problem = |attached: &Attached| {
        attached.endpoint.problem().map(|what| DeviceProblem {
            lineage: attached.lineage,
            what,
        })
    };
    endpoints.filter_map(problem).collect()
}

/// Figures of an endpoint. The daemon replaces the volume's number by its name.
fn endpoint_status((id, attached): (&AttachmentId, &Attached)) -> PeerStatus {
    let counters = attached.endpoint.counters().into_iter();
    PeerStatus {
        name: attached.spec.peer_name(id),
        counters: counters
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    }
}
