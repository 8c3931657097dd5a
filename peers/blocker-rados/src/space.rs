//! The thread that asks the monitors for free space: such calls block.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::object::ObjectReply;
use crossbeam_channel::{Receiver, Sender, unbounded};
use librados_sys::Cluster;
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::Deserialize;

use crate::errors::code_of;

/// The command for the monitors.
const DF: &str = r#"{"prefix":"df","format":"json"}"#;

/// The relevant part of their answer.
#[derive(Debug, Deserialize)]
struct Df {
    pools: Vec<DfPool>,
}

#[derive(Debug, Deserialize)]
struct DfPool {
    name: String,
    stats: DfStats,
}

#[derive(Debug, Deserialize)]
struct DfStats {
    /// Bytes that clients have stored.
    #[serde(default)]
    stored: u64,
    /// Bytes that they can still store, whatever the number of copies.
    #[serde(default)]
    max_avail: u64,
}

/// Bytes free and in all of the pool `name`, from the monitors' answer. Both are 0 without a manager, which counts them.
fn parse(answer: &[u8], name: &str) -> Option<[u64; 2]> {
    let df: Df = serde_json::from_slice(answer).ok()?;
    let pool = df.pools.into_iter().find(|pool| pool.name == name);
    let stats = pool.map_or(
        DfStats {
            stored: 0,
            max_avail: 0,
        },
        |pool| pool.stats,
    );
    let free = stats.max_avail;
    let total = match free {
        0 if stats.stored == 0 => 0,
        free => free.saturating_add(stats.stored),
    };
    Some([free, total])
}

fn ask(cluster: &Cluster, pool: &str) -> ObjectReply {
    match cluster.mon_command(DF) {
        Ok(answer) => match parse(&answer, pool) {
            Some(values) => ObjectReply {
                values,
                ..ObjectReply::done(0)
            },
            None => ObjectReply::failed(ErrorCode::Io),
        },
        Err(error) => ObjectReply::failed(code_of(error.code())),
    }
}

/// The thread, and the tickets that wait for its next answer.
#[derive(Debug)]
pub(crate) struct Space {
    /// `None` while it ends.
    asked: Option<Sender<()>>,
    answers: Receiver<ObjectReply>,
    doorbell: Arc<EventFd>,
    waiting: VecDeque<u64>,
    thread: Option<JoinHandle<()>>,
}

impl Space {
    /// Starts the thread, which asks for the pool `pool`.
    pub(crate) fn start(cluster: Cluster, pool: String) -> io::Result<Space> {
        let (asked, questions) = unbounded::<()>();
        let (sender, answers) = unbounded();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let doorbell = Arc::new(EventFd::from_flags(flags)?);
        let answered = Arc::clone(&doorbell);
        let thread = std::thread::Builder::new()
            .name("rados-space".to_owned())
            .spawn(move || {
                for () in questions {
                    // There is no receiver while the backend is being dropped.
                    let _sent = sender.send(ask(&cluster, &pool));
                    let _rung = answered.write(1);
                }
            })?;
        Ok(Space {
            asked: Some(asked),
            answers,
            doorbell,
            waiting: VecDeque::new(),
            thread: Some(thread),
        })
    }

    /// Becomes readable when there is an answer.
    pub(crate) fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    /// Requests an answer for `ticket`.
    pub(crate) fn ask(&mut self, ticket: u64) {
        self.waiting.push_back(ticket);
        if let Some(asked) = &self.asked {
            let _sent = asked.send(());
        }
    }

    /// The next answer. Answers come in the order of the requests.
    pub(crate) fn next(&mut self) -> Option<(u64, ObjectReply)> {
        if self.waiting.is_empty() {
            return None;
        }
        let reply = self.answers.try_recv().ok()?;
        let _counted = self.doorbell.read();
        Some((self.waiting.pop_front()?, reply))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.asked = None;
        if let Some(thread) = self.thread.take() {
            // The thread has no cause to panic, and a command has a timeout.
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_the_pool_s_and_unknown_without_a_manager() {
        let answer = br#"{"stats":{"total_bytes":10},"pools":[
            {"name":"a","id":1,"stats":{"stored":1,"max_avail":2,"objects":3}},
            {"name":"b","id":2,"stats":{"stored":5,"max_avail":7}},
            {"name":"full","id":3,"stats":{"stored":5,"max_avail":0}}]}"#;
        assert_eq!(parse(answer, "b"), Some([7, 12]));
        assert_eq!(parse(answer, "full"), Some([0, 5]));
        assert_eq!(parse(answer, "c"), Some([0, 0]));
        assert_eq!(parse(br#"{"stats":{},"pools":[]}"#, "a"), Some([0, 0]));
        assert_eq!(parse(b"none", "a"), None);
    }
}
