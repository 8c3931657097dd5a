//! What the node is and what went through it.

use std::time::Duration;

use archipelago_protocol::Lineage;
use archipelago_protocol::control::{
    ControlReply, ControlRequest, DeviceProblem, ProcessStatus, Wait,
};

use super::node::Node;
use super::process::Process;
use crate::api::types::{Attachment, NodeStatus, ProblemView, ProcessView, WaitView};
use crate::descriptors::Descriptors;
use crate::hosting::device_name;

/// A process that does not say how it is within this time is shown as not serving.
const PATIENCE: Duration = Duration::from_secs(2);

impl Node {
    /// The processes, their peers and channels, and what is attached.
    pub(crate) async fn status(&self) -> NodeStatus {
        let mut processes = Vec::with_capacity(self.processes.len());
        let mut waits = Vec::new();
        let mut problems = Vec::new();
        for process in &self.processes {
            let (view, status_waits, status_problems) = view(process).await;
            processes.push(view);
            waits.extend(status_waits);
            problems.extend(status_problems);
        }
        let attachments: Vec<Attachment> = self.attachments().all().cloned().collect();
        let peers = processes.iter_mut().flat_map(|process| &mut process.peers);
        for peer in peers {
            let of_peer = |one: &&Attachment| peer.name == device_name(&one.lineage);
            if let Some(attachment) = attachments.iter().find(of_peer) {
                peer.name = device_name(&attachment.name);
            }
        }
        let name_of = |lineage: Lineage| {
            let mut all = attachments.iter();
            all.find(|one| one.lineage == lineage)
                .map(|one| one.name.clone())
        };
        NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            descriptors: Descriptors::of(std::process::id()),
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
            problems: problems
                .into_iter()
                .map(|problem| ProblemView {
                    volume: name_of(problem.lineage),
                    what: problem.what,
                })
                .collect(),
            attachments,
        }
    }
}

async fn view(process: &Process) -> (ProcessView, Vec<Wait>, Vec<DeviceProblem>) {
    let answer = process.ask(&ControlRequest::Status, PATIENCE).await;
    let (serving, status) = match answer {
        Ok(ControlReply::Status(status)) => (true, status),
        _ => (false, ProcessStatus::default()),
    };
    let pid = process.pid();
    let view = ProcessView {
        roles: process.roles().to_vec(),
        pid,
        descriptors: (pid != 0).then(|| Descriptors::of(pid)).flatten(),
        restarts: process.restarts(),
        serving,
        peers: status.peers,
        channels: status.channels,
    };
    (view, status.waits, status.problems)
}
