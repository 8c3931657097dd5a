//! The pool of a data process, of any kind. A pool on RADOS is opened by another program, `archipelago-rados`, which reads the same
//! settings.

use std::path::{Path, PathBuf};

use archipelago_api::config::RadosPool;
use archipelago_blocker_file::{Claim, FileBackend, JoinedPool};
use archipelago_host::{Pool, Purpose, Sharing};
use archipelago_protocol::check::Report;
use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::Reactor;
use serde::{Deserialize, Serialize};

use crate::file_pool::FilePool;

/// The pool of a data process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum NodePool {
    /// Container files of a directory.
    File(FilePool),
    /// Objects of a RADOS pool.
    Rados(RadosSettings),
}

/// A RADOS pool, and the right with which it is opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RadosSettings {
    /// The pool.
    pub rados: RadosPool,
    /// The right.
    #[serde(default)]
    pub claim: Claim,
}

/// The request of `archipelago-rados make-pool`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakePool {
    /// The pool.
    pub rados: RadosPool,
    /// The node's directory of sockets: a pool that another node serves is refused.
    pub node: PathBuf,
    /// The right with which it will be opened.
    #[serde(default)]
    pub claim: Claim,
}

impl NodePool {
    /// Sets the right with which the pool is opened.
    pub(crate) fn set_claim(&mut self, new: Claim) {
        match self {
            NodePool::File(FilePool { claim, .. })
            | NodePool::Rados(RadosSettings { claim, .. }) => *claim = new,
        }
    }

    /// Its location, in the form of [`archipelago_api::config::PoolConfig::place`].
    pub(crate) fn place(&self) -> PathBuf {
        match self {
            NodePool::File(pool) => pool.directory.clone(),
            NodePool::Rados(pool) => pool.rados.place().into(),
        }
    }
}

impl Pool for NodePool {
    type Backend = FileBackend;
    type Joined = JoinedPool;

    fn directories(&self) -> Vec<&Path> {
        match self {
            NodePool::File(pool) => pool.directories(),
            NodePool::Rados(_) => Vec::new(),
        }
    }

    fn descriptors(&self, limit: u64) -> u64 {
        match self {
            NodePool::File(pool) => pool.descriptors(limit),
            NodePool::Rados(_) => 0,
        }
    }

    fn join(backend: &FileBackend) -> Option<JoinedPool> {
        FilePool::join(backend)
    }

    fn open_joined(joined: JoinedPool, reactor: &Reactor) -> Result<FileBackend, Error> {
        FilePool::open_joined(joined, reactor)
    }

    fn open(&self, reactor: &Reactor, purpose: Purpose, node: &Path) -> Result<FileBackend, Error> {
        match self {
            NodePool::File(pool) => pool.open(reactor, purpose, node),
            NodePool::Rados(pool) => {
                let message = format!(
                    "`{}` is opened by the program archipelago-rados",
                    pool.rados.place()
                );
                Err(Error::new(ErrorCode::Unsupported, message))
            }
        }
    }

    /// One node at a time, for every kind of pool: its lock or claim excludes every other node.
    fn sharing(&self) -> Sharing {
        Sharing::Alone
    }

    fn look_for_foreign(&self, report: &mut Report) {
        match self {
            NodePool::File(pool) => pool.look_for_foreign(report),
            NodePool::Rados(_) => {}
        }
    }
}
