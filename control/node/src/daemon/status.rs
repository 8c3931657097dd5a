//! The status and statistics of the node.

use std::collections::BTreeMap;
use std::time::Duration;

use archipelago_api::pools::{PoolLock, PoolStatus, PoolView};
use archipelago_api::types::{
    Attachment, AttachmentState, AttachmentView, NodeStatus, ProblemView, ProcessEnd, ProcessView,
    WaitView,
};
use archipelago_blocker_file::{Holder, Room};
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::control::{
    ControlReply, ControlRequest, DeviceProblem, ProcessStatus, Role, ServedAttachment, Wait,
};
use archipelago_protocol::{AttachmentId, Error, Lineage, Name};

use super::gauge::Gauge;
use super::local::{is_local, state};
use super::node::Node;
use super::pool::Pool;
use super::pool_requests::unexpected_reply;
use super::pool_watch::{Sight, problem};
use super::process::{AskError, Process};
use crate::descriptors::descriptors_of;

/// If a process ended within this time, that is why it does not answer: twice the longest wait between two starts.
const RECENT: Duration = Duration::from_secs(10);
/// A process that does not report its status within this time is shown as not serving.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The content of a pool.
#[derive(Debug, Clone, Copy)]
struct PoolContent {
    /// Volumes, snapshots and images.
    entries: u64,
    free: u64,
    /// 0: not known.
    total: u64,
    provisioned: u64,
}

impl PoolContent {
    /// The room, if it is known.
    fn room(self) -> Option<Room> {
        (self.total > 0).then(|| Room {
            free: self.free,
            used: self.total.saturating_sub(self.free),
            total: self.total,
            inodes: None,
        })
    }
}

/// The reports of the processes of one pool.
struct PoolReport {
    status: PoolStatus,
    processes: Vec<ProcessView>,
    waits: Vec<Wait>,
    problems: Vec<DeviceProblem>,
    journals: Vec<Lineage>,
    served: ServedAttachments,
}

/// The attachments that the process with the endpoint serves.
enum ServedAttachments {
    /// It serves exactly these.
    Known(Vec<ServedAttachment>),
    /// The process does not run.
    Nothing,
    /// It does not answer, or is busy.
    Unknown,
}

impl ServedAttachments {
    fn state(&self, id: AttachmentId) -> AttachmentState {
        match self {
            ServedAttachments::Nothing => AttachmentState::NotServed,
            ServedAttachments::Unknown => AttachmentState::Unknown,
            ServedAttachments::Known(served) => {
                let found = served.iter().find(|one| one.attachment == id);
                match found.map(|one| one.clients) {
                    None => AttachmentState::NotServed,
                    Some(None) => AttachmentState::Served,
                    Some(Some(0)) => AttachmentState::Idle,
                    Some(Some(_)) => AttachmentState::Connected,
                }
            }
        }
    }
}

impl Node {
    /// The processes, their peers and channels, and the attachments.
    pub(crate) async fn status(&self) -> NodeStatus {
        // In parallel, so that processes that do not answer cost one timeout, not one each.
        let pools = self.pools();
        let reports = futures_util::future::join_all(pools.iter().map(|pool| pool.report())).await;
        let attachments: Vec<Attachment> = self.context.attachments().all().cloned().collect();
        let mut status = NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            descriptors: descriptors_of(std::process::id()),
            placement: self.context.config.placement,
            processes: Vec::new(),
            waits: Vec::new(),
            journals: Vec::new(),
            pools: Vec::new(),
            problems: Vec::new(),
            attachments: Vec::new(),
        };
        let mut states = BTreeMap::new();
        for report in reports {
            let of_pool = attachments.iter().filter(|one| report.has(one));
            let of_pool = of_pool.map(|one| async {
                let state = match is_local(&one.endpoint) {
                    true => {
                        let looked = state(one, &self.context.looks);
                        let looked = tokio::time::timeout(ANSWER_TIMEOUT, looked).await;
                        looked.unwrap_or(AttachmentState::Unknown)
                    }
                    false => report.served.state(one.id),
                };
                (one.id, state)
            });
            states.extend(futures_util::future::join_all(of_pool).await);
            report.add_to(&mut status, &attachments);
        }
        let view = |attachment: Attachment| AttachmentView {
            // Attachments of a pool that the node does not have are not served.
            state: states
                .get(&attachment.id)
                .copied()
                .unwrap_or(AttachmentState::NotServed),
            attachment,
        };
        status.attachments = attachments.into_iter().map(view).collect();
        status
    }
}

impl PoolReport {
    /// Whether `attachment` belongs to this pool.
    fn has(&self, attachment: &Attachment) -> bool {
        attachment.pool.as_ref() == Some(&self.status.name)
    }

    /// Adds the report to `status`, with the names of attached volumes.
    fn add_to(mut self, status: &mut NodeStatus, attachments: &[Attachment]) {
        let pool = self.status.name.clone();
        let here = || {
            let of_pool = |one: &&Attachment| one.pool.as_ref() == Some(&pool);
            attachments.iter().filter(of_pool)
        };
        let peers = self
            .processes
            .iter_mut()
            .flat_map(|process| &mut process.peers);
        for peer in peers {
            let of_peer = |one: &&Attachment| peer.name == one.endpoint.peer_name(&one.id);
            if let Some(attachment) = here().find(of_peer) {
                peer.name = figures_name(attachment, here());
            }
        }
        let name_of = |lineage: Lineage| {
            here()
                .find(|one| one.lineage == lineage)
                .map(|one| one.name.clone())
        };
        status
            .waits
            .extend(self.waits.into_iter().map(|wait| WaitView {
                volume: name_of(wait.lineage),
                what: wait.what,
                seconds: wait.seconds,
            }));
        let problems = self.problems.into_iter().map(|problem| ProblemView {
            volume: name_of(problem.lineage),
            pool: None,
            what: problem.what,
        });
        status.problems.extend(problems);
        status.problems.extend(problem(&self.status));
        status
            .journals
            .extend(self.journals.into_iter().filter_map(name_of));
        status.processes.extend(self.processes);
        status.pools.push(self.status);
    }
}

/// The name for the statistics of `attachment`: its volume's, with its number if the volume has several of one kind.
fn figures_name<'a>(
    attachment: &Attachment,
    attachments: impl Iterator<Item = &'a Attachment>,
) -> String {
    let kind = attachment.endpoint.kind();
    let is_alike =
        |one: &&Attachment| one.lineage == attachment.lineage && one.endpoint.kind() == kind;
    let name = attachment.endpoint.peer_name(&attachment.name);
    match attachments.filter(is_alike).count() {
        0..=1 => name,
        _ => format!("{name}#{}", attachment.id),
    }
}

impl Pool {
    /// The present state of the pool, without what only its process knows: access, reserve and owner.
    async fn look(&self) -> PoolStatus {
        let Sight { space, holder } = match &self.watch {
            Some(watch) => watch.look(&self.name).await,
            None => Sight::default(),
        };
        let is_ours = |pid| self.processes.iter().any(|process| process.pid() == pid);
        PoolStatus {
            name: self.name.clone(),
            unserved: self.unserved_reason().map(|why| why.message),
            kind: self.config.kind().to_owned(),
            directory: self.config.place(),
            access: None,
            reserve: None,
            space,
            lock: holder.map(|Holder { pid, .. }| PoolLock {
                pid,
                ours: pid.is_some_and(is_ours),
            }),
            owner: None,
        }
    }

    /// Number of volumes, snapshots and images.
    pub(crate) async fn entries(&self) -> Result<u64, Error> {
        Ok(self.content().await?.entries)
    }

    async fn content(&self) -> Result<PoolContent, Error> {
        match self.catalogue(CatalogueRequest::PoolInfo).await? {
            CatalogueReply::Pool {
                entries,
                free,
                total,
                provisioned,
            } => Ok(PoolContent {
                entries,
                free,
                total,
                provisioned,
            }),
            other => Err(unexpected_reply(&other)),
        }
    }

    async fn report(&self) -> PoolReport {
        let views = self
            .processes
            .iter()
            .map(|process| view(&self.name, process));
        let views = futures_util::future::join_all(views);
        let (status, views) = futures_util::future::join(self.look(), views).await;
        let mut report = PoolReport {
            status,
            processes: Vec::new(),
            waits: Vec::new(),
            problems: Vec::new(),
            journals: Vec::new(),
            served: ServedAttachments::Unknown,
        };
        for (view, status) in views {
            if view.roles.contains(&Role::Endpoint) {
                report.served = match status.served {
                    Some(served) => ServedAttachments::Known(served),
                    None if view.pid == 0 => ServedAttachments::Nothing,
                    None => ServedAttachments::Unknown,
                };
            }
            report.waits.extend(status.waits);
            report.problems.extend(status.problems);
            report.journals.extend(status.journals);
            report.status.add_report(status.pool);
            report.processes.push(view);
        }
        report
    }

    /// The present status of the pool, with the report of the process that serves it, if the process answers.
    async fn pool_status(&self) -> PoolStatus {
        let blocker = self.process(Role::Blocker);
        let asked = blocker.ask(&ControlRequest::Status, ANSWER_TIMEOUT);
        let (mut pool, answer) = futures_util::future::join(self.look(), asked).await;
        if let Ok(ControlReply::Status(status)) = answer {
            pool.add_report(status.pool);
        }
        pool
    }

    /// The pool and its content; if it is not served, without the content.
    ///
    /// # Errors
    /// If the pool is served but does not report its content.
    pub(crate) async fn info_of_pool(&self) -> Result<PoolView, Error> {
        let content = match self.unserved_reason() {
            None => Some(self.content().await?),
            Some(_) => None,
        };
        let (status, stored) = futures_util::future::join(self.pool_status(), self.stored()).await;
        Ok(PoolView {
            stored,
            ..view_of_pool(status, content)
        })
    }

    /// The same for a list of pools: does not wait for this pool.
    pub(crate) async fn line_of_pool(&self) -> PoolView {
        let content = match self.unserved_reason() {
            None => tokio::time::timeout(ANSWER_TIMEOUT, self.content())
                .await
                .ok(),
            Some(_) => None,
        };
        view_of_pool(self.pool_status().await, content.and_then(Result::ok))
    }
}

fn view_of_pool(mut status: PoolStatus, content: Option<PoolContent>) -> PoolView {
    // Without a file system, the backend reports the space, if it knows it.
    if status.space.is_none()
        && let Some(room) = content.and_then(|content| content.room())
    {
        status.space = Some(Gauge::default().look(&room).0);
    }
    PoolView {
        free: status.space.map_or(0, |space| space.free),
        total: status.space.map_or(0, |space| space.total),
        entries: content.map(|content| content.entries),
        provisioned: content.map(|content| content.provisioned),
        stored: None,
        status,
    }
}

/// A process as it is shown to users, and the parts of its report that belong elsewhere.
async fn view(pool: &Name, process: &Process) -> (ProcessView, ProcessStatus) {
    let answer = process.ask(&ControlRequest::Status, ANSWER_TIMEOUT).await;
    let title = process.title();
    let (silence, mut status) = match answer {
        Ok(ControlReply::Status(status)) => (None, status),
        Ok(ControlReply::Failed(error)) | Err(AskError::Failed(error)) => {
            (Some(error.message), ProcessStatus::default())
        }
        Ok(_) | Err(AskError::Lost) => {
            let why = format!("the {title} process ended while it was asked");
            (Some(why), ProcessStatus::default())
        }
    };
    let pid = process.pid();
    let last_end = process.last_end();
    let reason = silence.map(|silence| match &last_end {
        Some(end) if pid == 0 || end.at.elapsed() < RECENT => end.error.message.clone(),
        _ => silence,
    });
    let view = ProcessView {
        pool: Some(pool.clone()),
        roles: process.roles().to_vec(),
        pid,
        descriptors: (pid != 0).then(|| descriptors_of(pid)).flatten(),
        restarts: process.restarts(),
        serving: reason.is_none(),
        reason,
        last_end: last_end.map(|end| ProcessEnd {
            reason: end.error.message,
            seconds: end.at.elapsed().as_secs(),
        }),
        peers: std::mem::take(&mut status.peers),
        channels: std::mem::take(&mut status.channels),
    };
    (view, status)
}
