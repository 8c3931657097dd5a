//! What the node is and what went through it.

use std::time::Duration;

use archipelago_protocol::Lineage;
use archipelago_protocol::control::{ControlReply, ControlRequest, ProcessStatus, Role};

use super::node::Node;
use super::pool_watch::problem;
use super::process::{AskError, Process};
use crate::descriptors::descriptors_of;
use archipelago_api::pools::PoolStatus;
use archipelago_api::types::{
    Attachment, NodeStatus, ProblemView, ProcessEnd, ProcessView, WaitView,
};

/// A process that ended no longer ago than this does not answer because of that: twice the longest wait between two lives.
const RECENT: Duration = Duration::from_secs(10);
/// A process that does not say how it is within this time is shown as not serving.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

impl Node {
    /// The processes, their peers and channels, and what is attached.
    pub(crate) async fn status(&self) -> NodeStatus {
        let mut processes = Vec::with_capacity(self.processes.len());
        let mut waits = Vec::new();
        let mut problems = Vec::new();
        let mut journals = Vec::new();
        // Beside each other: one that does not answer costs what it waits, not three of them.
        let views = self.processes.iter().map(|process| view(process));
        let views = futures_util::future::join_all(views);
        let (mut pool, views) = futures_util::future::join(self.look_at_pool(), views).await;
        for (view, status) in views {
            waits.extend(status.waits);
            problems.extend(status.problems);
            journals.extend(status.journals);
            pool.add_report(status.pool);
            processes.push(view);
        }
        let attachments: Vec<Attachment> = self.attachments().all().cloned().collect();
        let peers = processes.iter_mut().flat_map(|process| &mut process.peers);
        for peer in peers {
            let of_peer = |one: &&Attachment| peer.name == one.endpoint.peer_name(&one.lineage);
            if let Some(attachment) = attachments.iter().find(of_peer) {
                peer.name = attachment.endpoint.peer_name(&attachment.name);
            }
        }
        let name_of = |lineage: Lineage| {
            let mut all = attachments.iter();
            all.find(|one| one.lineage == lineage)
                .map(|one| one.name.clone())
        };
        let mut problems: Vec<ProblemView> = problems
            .into_iter()
            .map(|problem| ProblemView {
                volume: name_of(problem.lineage),
                pool: None,
                what: problem.what,
            })
            .collect();
        problems.extend(problem(&pool));
        NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            descriptors: descriptors_of(std::process::id()),
            placement: self.config.placement,
            processes,
            waits: waits
                .into_iter()
                .map(|wait| WaitView {
                    volume: name_of(wait.lineage),
                    what: wait.what,
                    seconds: wait.seconds,
                })
                .collect(),
            journals: journals.into_iter().filter_map(name_of).collect(),
            pools: vec![pool],
            problems,
            attachments,
        }
    }
}

impl Node {
    /// The pool as it is now, with what the process says that serves it, if it answers.
    pub(crate) async fn pool_status(&self) -> PoolStatus {
        let blocker = self.process(Role::Blocker);
        let asked = blocker.ask(&ControlRequest::Status, ANSWER_TIMEOUT);
        let (mut pool, answer) = futures_util::future::join(self.look_at_pool(), asked).await;
        if let Ok(ControlReply::Status(status)) = answer {
            pool.add_report(status.pool);
        }
        pool
    }
}

/// A process for people, and what it said of what is not its own.
async fn view(process: &Process) -> (ProcessView, ProcessStatus) {
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
