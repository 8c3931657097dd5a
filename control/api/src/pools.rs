//! Bodies of answers about pools.

use std::fmt;
use std::path::PathBuf;

use archipelago_protocol::Name;
use archipelago_protocol::control::{PoolAccess, PoolReport, PoolReserve};
use serde::{Deserialize, Serialize};

use crate::config::RadosPool;

/// A pool and its file system.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its name.
    pub name: Name,
    /// Why its volumes are not served; null: they are.
    #[serde(default)]
    pub unserved: Option<String>,
    /// Its backend.
    pub kind: String,
    /// Where it is: a directory, or `rados:POOL/NAMESPACE`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub directory: PathBuf,
    /// How its files are accessed; null: the process that serves it does not answer.
    #[serde(default)]
    pub access: Option<PoolAccess>,
    /// The room in its file system; null: the file system does not answer.
    #[serde(default)]
    pub space: Option<PoolSpace>,
    /// The room that is set aside for metadata; null: the process that serves the pool does not answer.
    #[serde(default)]
    pub reserve: Option<PoolReserve>,
    /// Who has it open; null: nobody, or the file system does not answer.
    #[serde(default)]
    pub lock: Option<PoolLock>,
    /// Its owner record, which other hosts find, for people; null: there is none, or the process that serves the pool does not
    /// answer.
    #[serde(default)]
    pub owner: Option<String>,
}

impl PoolStatus {
    /// Adds the report of the process that serves the pool, if there is one.
    pub fn add_report(&mut self, report: Option<PoolReport>) {
        let Some(PoolReport {
            access,
            reserve,
            owner,
        }) = report
        else {
            return;
        };
        (self.access, self.reserve, self.owner) = (Some(access), Some(reserve), owner);
    }
}

/// The room in a pool's file system, as far as a process without privileges may use it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpace {
    /// Bytes free.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
    /// How much of what may be used is used, in percent, rounded up.
    pub used_percent: u8,
    /// How full it is, by bytes or inodes, whichever is fuller.
    pub level: SpaceLevel,
    /// Inodes; null: the file system has no limit of them.
    #[serde(default)]
    pub inodes: Option<Inodes>,
}

/// Inodes of a file system that has a limit of them.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inodes {
    /// Free.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// How full a file system is.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SpaceLevel {
    /// Less than 80 % are used.
    #[serde(rename = "ok")]
    Ok,
    /// At least 80 % are used.
    #[serde(rename = "80")]
    Used80,
    /// At least 90 % are used.
    #[serde(rename = "90")]
    Used90,
    /// At least 95 % are used.
    #[serde(rename = "95")]
    Used95,
    /// Nothing worth mentioning is left: writes that need room wait, or fail.
    #[serde(rename = "full")]
    Full,
}

impl fmt::Display for SpaceLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SpaceLevel::Ok => "ok",
            SpaceLevel::Used80 => "80 %",
            SpaceLevel::Used90 => "90 %",
            SpaceLevel::Used95 => "95 %",
            SpaceLevel::Full => "full",
        })
    }
}

/// The owner of a pool's lock, from the lock file.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolLock {
    /// The process that opened the pool; null: it has not written its id yet.
    pub pid: Option<u32>,
    /// Whether that is a process of this node.
    pub ours: bool,
}

/// A pool, and what is in it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    /// The pool and its file system.
    #[serde(flatten)]
    pub status: PoolStatus,
    /// Bytes free.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
    /// Volumes, snapshots and images; null: the pool is not served, or does not answer.
    pub entries: Option<u64>,
    /// Bytes of all volumes together, as guests see them; null: as `entries`.
    #[serde(default)]
    pub provisioned: Option<u64>,
    /// What its objects occupy, where one pool of files is asked for; null: its files cannot be counted, or not within 2 s.
    #[serde(default)]
    pub stored: Option<PoolStored>,
}

/// What the objects of a pool occupy.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStored {
    /// Bytes of what volumes, snapshots and images hold.
    pub data: u64,
    /// Bytes of maps, logs and the catalogue.
    pub metadata: u64,
}

/// Adds a pool to the node.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddPool {
    /// Its name.
    pub name: Name,
    /// Its directory, if it is one of files: an absolute path; an empty directory or a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub directory: Option<PathBuf>,
    /// Its RADOS pool, if it is on one; in place of `directory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rados: Option<RadosPool>,
    /// Take it over from a node of another host that has not released it, and does not write to it any more.
    #[serde(default)]
    pub take_over: bool,
}

/// The pools.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolList {
    /// In order of their names.
    pub pools: Vec<PoolView>,
}
