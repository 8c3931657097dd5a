//! Faults of the processes of a node: a process is killed, or stopped and continued, one or two at a time.

use std::time::Duration;

use anyhow::Result;
use archipelago_bench::load::Random;
use archipelago_bench::waiting;
use nix::unistd::Pid;

use crate::node::Node;

/// A process of the node.
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
    /// If the node does not report its processes.
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

    /// Kills the process, and restarts the daemon, which nothing else restarts.
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

/// A fault that one round injects.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Killed under load.
    Kill(Victim),
    /// Stopped for a while.
    Stop(Victim),
    /// The first is stopped, the second killed meanwhile; the first continues if it is alive.
    StopAndKill(Victim, Victim),
}

impl Fault {
    /// A random fault of `victims`: three of five are kills.
    ///
    /// # Panics
    /// If there are no victims.
    pub fn draw(random: &mut Random, victims: &[Victim]) -> Fault {
        let mut victim = || {
            let index = random.below(victims.len() as u64);
            victims[usize::try_from(index).expect("below a handful")]
        };
        let (first, second) = (victim(), victim());
        match random.below(5) {
            0 => Fault::Stop(first),
            1 => Fault::StopAndKill(first, second),
            _ => Fault::Kill(first),
        }
    }

    /// Signals that count.
    #[must_use]
    pub fn signals(self) -> u64 {
        match self {
            Fault::Kill(_) | Fault::Stop(_) => 1,
            Fault::StopAndKill(..) => 2,
        }
    }

    /// The name of its kind, for tables.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Fault::Kill(victim) => format!("kill {}", victim.name()),
            Fault::Stop(victim) => format!("stop {}", victim.name()),
            Fault::StopAndKill(..) => "stop one, kill one".to_owned(),
        }
    }

    /// Injects the fault; a stopped process continues after `pause`.
    ///
    /// # Errors
    /// If a process cannot be had, or the node does not start again.
    pub fn inject(self, node: &Node, pause: Duration) -> Result<()> {
        match self {
            Fault::Kill(victim) => victim.kill(node, victim.pid(node)?),
            Fault::Stop(victim) => {
                let pid = victim.pid(node)?;
                Node::freeze(pid)?;
                waiting::pause(pause);
                Node::thaw(pid)
            }
            Fault::StopAndKill(stopped, killed) => {
                let (stopped, killed_pid) = (stopped.pid(node)?, killed.pid(node)?);
                Node::freeze(stopped)?;
                killed.kill(node, killed_pid)?;
                waiting::pause(pause);
                Node::thaw(stopped)
            }
        }
    }
}
