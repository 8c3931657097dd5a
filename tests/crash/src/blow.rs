//! What is done to the processes of a node: killed, or stopped and continued, one or two at a time.

use std::time::Duration;

use anyhow::Result;
use archipelago_bench::load::Random;
use archipelago_bench::waiting;
use nix::unistd::Pid;

use crate::node::Node;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// The node's daemon, and its data processes with it.
    Daemon,
    /// The process that hosts this role.
    Role(&'static str),
}

/// All that there is in the fused placement: its data process has every role.
pub const FUSED: &[Victim] = &[Victim::Daemon, Victim::Role("endpoint")];
/// All that there is in the split placement.
pub const SPLIT: &[Victim] = &[
    Victim::Daemon,
    Victim::Role("endpoint"),
    Victim::Role("mapper"),
    Victim::Role("blocker"),
];

impl Victim {
    /// Its process now.
    ///
    /// # Errors
    /// If the node does not tell.
    pub fn pid(self, node: &Node) -> Result<Pid> {
        match self {
            Victim::Daemon => node.daemon(),
            Victim::Role(role) => node.process_of(role),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Victim::Daemon => "daemon",
            Victim::Role(role) => role,
        }
    }

    /// Kills it, and starts again what nobody else starts.
    ///
    /// # Errors
    /// If the node does not start again.
    pub fn kill(self, node: &Node, pid: Pid) -> Result<()> {
        Node::kill(pid)?;
        if self == Victim::Daemon {
            node.restart()?;
        }
        Ok(())
    }
}

/// What is done to the node in one round.
#[derive(Debug, Clone, Copy)]
pub enum Blow {
    /// Killed under load.
    Kill(Victim),
    /// Stopped for a while.
    Stop(Victim),
    /// The first is stopped, the second killed meanwhile, the first goes on if it is alive.
    StopAndKill(Victim, Victim),
}

impl Blow {
    /// One of those that may hit `victims`: three of five are kills.
    ///
    /// # Panics
    /// If there are no victims.
    pub fn draw(random: &mut Random, victims: &[Victim]) -> Blow {
        let mut victim = || {
            let index = random.below(victims.len() as u64);
            victims[usize::try_from(index).expect("below a handful")]
        };
        let (first, second) = (victim(), victim());
        match random.below(5) {
            0 => Blow::Stop(first),
            1 => Blow::StopAndKill(first, second),
            _ => Blow::Kill(first),
        }
    }

    /// Signals that count.
    #[must_use]
    pub fn signals(self) -> u64 {
        match self {
            Blow::Kill(_) | Blow::Stop(_) => 1,
            Blow::StopAndKill(..) => 2,
        }
    }

    /// Of its kind, for tables.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Blow::Kill(victim) => format!("kill {}", victim.name()),
            Blow::Stop(victim) => format!("stop {}", victim.name()),
            Blow::StopAndKill(..) => "stop one, kill one".to_owned(),
        }
    }

    /// Does it; what is stopped goes on after `pause`.
    ///
    /// # Errors
    /// If a process cannot be had, or the node does not start again.
    pub fn strike(self, node: &Node, pause: Duration) -> Result<()> {
        match self {
            Blow::Kill(victim) => victim.kill(node, victim.pid(node)?),
            Blow::Stop(victim) => {
                let pid = victim.pid(node)?;
                Node::freeze(pid)?;
                waiting::pause(pause);
                Node::thaw(pid)
            }
            Blow::StopAndKill(stopped, killed) => {
                let (stopped, killed_pid) = (stopped.pid(node)?, killed.pid(node)?);
                Node::freeze(stopped)?;
                killed.kill(node, killed_pid)?;
                waiting::pause(pause);
                Node::thaw(stopped)
            }
        }
    }
}
