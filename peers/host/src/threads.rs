//! The data threads of a process as control sees them: which of them has a volume, and the ways to them.
//!
//! Invariants
//! - Whatever concerns a lineage goes to one thread, from the first request that does until the lineage is removed or the process ends.
//!   So one mapper has its session, and one backend knows where its log ends and what of it is not durable.
//! - That is for service, not for safety: a mapper takes no volume from another one, whose incarnation its head names.
//! - A question assigns nothing: any mapper can read what nobody has open, and only the owner knows what it has not stored yet.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Entry, Kind};
use archipelago_protocol::control::{ControlReply, ControlRequest, ProcessStatus};
use archipelago_protocol::{ErrorCode, Lineage, Name};
use archipelago_runtime::Handle;

use crate::control::{Answer, ask};
use crate::host::Job;

/// The way to a data thread.
#[derive(Debug, Clone)]
pub(crate) struct ThreadQueue {
    jobs: Sender<Job>,
    handle: Handle,
}

impl ThreadQueue {
    pub(crate) fn new(jobs: Sender<Job>, handle: Handle) -> ThreadQueue {
        ThreadQueue { jobs, handle }
    }

    pub(crate) fn send(&self, job: Job) {
        // A data thread that has ended takes the process with it; whoever waits for an answer sees that.
        let _ended = self.jobs.send(job);
        self.handle.wake();
    }

    /// Has the thread carry out `request`.
    pub(crate) fn request(&self, request: ControlRequest, answer: Answer) {
        self.send(Job::Request(request, answer));
    }

    /// Ends the thread as it is.
    pub(crate) fn end(&self) {
        self.handle.stop();
    }
}

/// Which thread has a lineage.
#[derive(Debug)]
struct Assignments {
    by_lineage: BTreeMap<Lineage, usize>,
    /// Lineages of each thread.
    counts: Vec<usize>,
}

impl Assignments {
    /// The thread of `lineage`: the one with the fewest lineages, if it has none yet.
    fn assign(&mut self, lineage: Lineage) -> usize {
        let counts = &mut self.counts;
        *self.by_lineage.entry(lineage).or_insert_with(|| {
            let fewest = counts.iter().copied().min().unwrap_or_default();
            let index = counts.iter().position(|count| *count == fewest);
            let index = index.unwrap_or_default();
            counts[index] += 1;
            index
        })
    }

    /// The thread of `lineage`, if it has one.
    fn find(&self, lineage: Lineage) -> Option<usize> {
        self.by_lineage.get(&lineage).copied()
    }

    fn release(&mut self, lineage: Lineage) {
        if let Some(index) = self.by_lineage.remove(&lineage) {
            self.counts[index] -= 1;
        }
    }
}

/// All data threads of a process.
#[derive(Debug, Clone)]
pub(crate) struct DataThreads {
    queues: Arc<[ThreadQueue]>,
    assignments: Arc<Mutex<Assignments>>,
}

/// The name that a request is about, if it concerns the volume and not only its entry.
fn subject(request: &CatalogueRequest) -> Option<&Name> {
    match request {
        CatalogueRequest::Snapshot { volume, .. }
        | CatalogueRequest::PrepareSnapshot { volume, .. } => Some(volume),
        CatalogueRequest::Publish { name }
        | CatalogueRequest::Resize { name, .. }
        | CatalogueRequest::Rollback { name, .. }
        | CatalogueRequest::Remove { name } => Some(name),
        CatalogueRequest::Create { .. }
        | CatalogueRequest::Clone { .. }
        | CatalogueRequest::Lookup { .. }
        | CatalogueRequest::List { .. }
        | CatalogueRequest::Set { .. }
        | CatalogueRequest::Rename { .. }
        | CatalogueRequest::Fence { .. }
        | CatalogueRequest::Usage { .. }
        | CatalogueRequest::Diff { .. }
        | CatalogueRequest::PoolInfo
        | CatalogueRequest::Check { .. } => None,
    }
}

impl DataThreads {
    /// # Panics
    /// Without a thread.
    pub(crate) fn new(queues: Vec<ThreadQueue>) -> DataThreads {
        assert!(!queues.is_empty(), "a process has a data thread");
        let assignments = Assignments {
            by_lineage: BTreeMap::new(),
            counts: vec![0; queues.len()],
        };
        DataThreads {
            queues: queues.into(),
            assignments: Arc::new(Mutex::new(assignments)),
        }
    }

    fn assignments(&self) -> MutexGuard<'_, Assignments> {
        // Whole at any time.
        self.assignments
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread for what concerns no volume.
    pub(crate) fn first(&self) -> &ThreadQueue {
        &self.queues[0]
    }

    /// The thread that has the volume `lineage`.
    pub(crate) fn of(&self, lineage: Lineage) -> &ThreadQueue {
        match self.queues.len() {
            1 => self.first(),
            _ => &self.queues[self.assignments().assign(lineage)],
        }
    }

    /// The thread that has the volume `lineage`, if one has it.
    fn owner(&self, lineage: Lineage) -> Option<&ThreadQueue> {
        let index = self.assignments().find(lineage)?;
        self.queues.get(index)
    }

    /// Has the catalogue asked by the mapper of the thread that has the volume which `request` is about.
    pub(crate) fn catalogue(&self, request: CatalogueRequest, answer: Answer) {
        if let (2.., CatalogueRequest::Usage { name } | CatalogueRequest::Diff { name, .. }) =
            (self.queues.len(), &request)
        {
            let volume = self.volume_of(name);
            return self.question(volume, ControlRequest::Catalogue(request), answer);
        }
        let named = match (self.queues.len(), subject(&request)) {
            (2.., Some(name)) => self.lineage_of(name),
            _ => None,
        };
        let removes = matches!(request, CatalogueRequest::Remove { .. });
        let request = ControlRequest::Catalogue(request);
        let Some(lineage) = named else {
            // There is no such name: the first thread says so.
            return self.first().request(request, answer);
        };
        if !removes {
            return self.of(lineage).request(request, answer);
        }
        if let Some(reply) = ask(|answer| self.of(lineage).request(request, answer)) {
            if matches!(reply, ControlReply::Catalogue(CatalogueReply::Done)) {
                self.assignments().release(lineage);
            }
            answer.send(reply);
        }
    }

    /// Has `request`, a question about `volume`, answered by the thread that has the volume; by the first thread if none has it.
    pub(crate) fn question(
        &self,
        volume: Option<Lineage>,
        request: ControlRequest,
        answer: Answer,
    ) {
        let owner = || volume.and_then(|volume| self.owner(volume));
        if let Some(owner) = owner() {
            return owner.request(request, answer);
        }
        let asked = request.clone();
        let Some(reply) = ask(|answer| self.first().request(asked, answer)) else {
            return;
        };
        let is_open = matches!(
            &reply,
            ControlReply::Catalogue(CatalogueReply::Failed(error)) if error.code == ErrorCode::InUse
        );
        match owner() {
            // Opened since the question was asked.
            Some(owner) if is_open => owner.request(request, answer),
            _ => answer.send(reply),
        }
    }

    fn lineage_of(&self, name: &Name) -> Option<Lineage> {
        Some(self.lookup(name)?.lineage)
    }

    /// The volume whose blocks `name` may have: of a snapshot, the one that it was made of.
    fn volume_of(&self, name: &Name) -> Option<Lineage> {
        let entry = self.lookup(name)?;
        match entry.kind {
            Kind::Snapshot => self.lineage_of(&entry.parent?),
            Kind::Volume | Kind::Image | Kind::Importing => Some(entry.lineage),
        }
    }

    fn lookup(&self, name: &Name) -> Option<Entry> {
        let look = CatalogueRequest::Lookup { name: name.clone() };
        let request = ControlRequest::Catalogue(look);
        match ask(|answer| self.first().request(request, answer)) {
            Some(ControlReply::Catalogue(CatalogueReply::Entry(entry))) => Some(entry),
            _ => None,
        }
    }

    /// What all threads say; `None`: one of them has ended. Where there are several, the names of peers say whose they are.
    pub(crate) fn status(&self) -> Option<ProcessStatus> {
        let mut all = ProcessStatus::default();
        for (number, queue) in self.queues.iter().enumerate() {
            let reply = ask(|answer| queue.request(ControlRequest::Status, answer));
            let Some(ControlReply::Status(mut one)) = reply else {
                return None;
            };
            if self.queues.len() > 1 {
                let peers = one.peers.iter_mut().map(|peer| &mut peer.name);
                let clients = one.channels.iter_mut().map(|channel| &mut channel.client);
                peers
                    .chain(clients)
                    .for_each(|name| *name = format!("{name}@{number}"));
            }
            if number == 0 {
                all = one;
                continue;
            }
            all.peers.extend(one.peers);
            all.channels.extend(one.channels);
            all.waits.extend(one.waits);
            all.journals.extend(one.journals);
            all.channels_to.extend(one.channels_to);
        }
        all.waits
            .sort_by_key(|wait| std::cmp::Reverse(wait.seconds));
        Some(all)
    }

    /// Ends all threads as they are.
    pub(crate) fn end(&self) {
        self.queues.iter().for_each(ThreadQueue::end);
    }

    /// Stops all threads; the first one, which has the catalogue's objects, when the others have ended.
    pub(crate) fn stop(&self, answer: Answer) {
        let (first, others) = (self.first(), &self.queues[1..]);
        std::thread::scope(|scope| {
            for queue in others {
                let stop = || ask(|answer| queue.request(ControlRequest::Stop, answer));
                // One after another where there can be no thread.
                if Builder::new().spawn_scoped(scope, stop).is_err() {
                    let _ended = stop();
                }
            }
        });
        first.request(ControlRequest::Stop, answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_spread_and_each_stays_where_it_is() {
        let mut assignments = Assignments {
            by_lineage: BTreeMap::new(),
            counts: vec![0; 3],
        };
        let spread = [7, 8, 9, 7, 10, 8].map(|lineage| assignments.assign(Lineage(lineage)));
        assert_eq!(spread, [0, 1, 2, 0, 0, 1]);
        assert_eq!(
            (assignments.find(Lineage(9)), assignments.find(Lineage(11))),
            (Some(2), None)
        );
        assignments.release(Lineage(8));
        assignments.release(Lineage(8));
        assert_eq!(assignments.assign(Lineage(11)), 1, "where there is room");
        assert_eq!(assignments.assign(Lineage(10)), 0);
    }
}
