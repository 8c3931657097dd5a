//! Files that programs have open: one thread and one channel for each, whoever and how many have it open.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use archipelago_api::client::Client;
use archipelago_kept_volume::{Incarnation, Opener};
use archipelago_protocol::{Access, ErrorCode, Lineage};

use crate::io_thread::IoThread;
use crate::job::{Io, Job, Reply};
use crate::nodes::Node;
use crate::requests::OPTIONS;

/// A file that somebody has open.
#[derive(Debug)]
struct OpenFile {
    thread: IoThread,
    /// Those who have it open, or are about to.
    users: usize,
}

/// Somebody's open file.
#[derive(Debug, Clone, Copy)]
struct Handle {
    lineage: Lineage,
    incarnation: Incarnation,
}

#[derive(Debug, Default)]
struct Tables {
    files: HashMap<Lineage, OpenFile>,
    handles: HashMap<u64, Handle>,
    next_handle: u64,
}

impl Tables {
    fn add_handle(&mut self, handle: Handle) -> u64 {
        self.next_handle += 1;
        self.handles.insert(self.next_handle, handle);
        self.next_handle
    }

    fn leave(&mut self, lineage: Lineage) {
        if let Some(file) = self.files.get_mut(&lineage) {
            file.users -= 1;
            if file.users == 0 {
                // Its thread closes the volume.
                self.files.remove(&lineage);
            }
        }
    }
}

/// All of them. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct OpenFiles {
    tables: Arc<Mutex<Tables>>,
    /// Threads that may not have ended yet.
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    wait_max: Duration,
}

impl OpenFiles {
    /// None yet. Requests wait for up to `wait_max` for an endpoint that is away.
    pub(crate) fn new(wait_max: Duration) -> OpenFiles {
        OpenFiles {
            tables: Arc::default(),
            threads: Arc::default(),
            wait_max,
        }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens `node`; `reply` gets the number of the handle.
    pub(crate) fn open(&self, client: &Client, node: &Node, access: Access, reply: Reply<u64>) {
        let lineage = node.lineage();
        let mut tables = self.tables();
        let file = match tables.files.entry(lineage) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => {
                let opener = Opener::new(client.clone(), node.name().clone(), lineage, OPTIONS);
                match self.start(opener, node) {
                    Ok(thread) => vacant.insert(OpenFile { thread, users: 0 }),
                    Err(error) => {
                        drop(tables);
                        tracing::error!("opening `{}`: {error}", node.name());
                        return reply(Err(ErrorCode::NoDescriptors));
                    }
                }
            }
        };
        file.users += 1;
        let files = self.clone();
        let opened = move |result: Result<Incarnation, ErrorCode>| {
            let mut tables = files.tables();
            let result = match result {
                Ok(incarnation) => Ok(tables.add_handle(Handle {
                    lineage,
                    incarnation,
                })),
                Err(code) => {
                    tables.leave(lineage);
                    Err(code)
                }
            };
            drop(tables);
            reply(result);
        };
        file.thread.send(Job::Open {
            access,
            reply: Box::new(opened),
        });
    }

    fn start(&self, opener: Opener, node: &Node) -> io::Result<IoThread> {
        let (queue, thread) = IoThread::start(opener, Arc::clone(&node.size), self.wait_max)?;
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(queue)
    }

    /// Does `io` with the open file `handle`.
    pub(crate) fn io(&self, handle: u64, io: Io) {
        let tables = self.tables();
        let Some(Handle {
            lineage,
            incarnation,
        }) = tables.handles.get(&handle).copied()
        else {
            drop(tables);
            return io.fail(ErrorCode::Invalid);
        };
        if let Some(file) = tables.files.get(&lineage) {
            file.thread.send(Job::Io { incarnation, io });
        }
    }

    /// Somebody closes `handle`. The volume is closed with the last of its handles.
    pub(crate) fn release(&self, handle: u64) {
        let mut tables = self.tables();
        if let Some(handle) = tables.handles.remove(&handle) {
            tables.leave(handle.lineage);
        }
    }

    /// Closes everything, and waits until all is durable.
    pub(crate) fn close_all(&self) {
        let mut tables = self.tables();
        tables.handles.clear();
        tables.files.clear();
        drop(tables);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // What failed was logged.
            let _ended = thread.join();
        }
    }
}
