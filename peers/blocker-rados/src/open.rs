//! Opens or makes a pool: each step that may fail has an error of its own, within [`TIMEOUT`] each.

use std::path::PathBuf;
use std::time::Duration;

use archipelago_protocol::{Error, ErrorCode};
use librados_sys::{
    Cluster, Code, Completions, ConnectOptions, Payload, Pool, RadosError, ReadOp, WriteOp,
};
use serde::{Deserialize, Serialize};

use crate::errors::code_of;
use crate::names::MARKER;
use crate::owner::{Claimant, Owner, Place};

/// Timeout for one step of opening. Two of them fit into the 10 s in which an error must be reported.
const TIMEOUT: Duration = Duration::from_secs(4);
/// The format that this program writes, and the only one that it reads.
const FORMAT: u32 = 1;
/// Longest marker.
const MARKER_LEN_MAX: usize = 4096;
/// A key in the marker's sorted map: a pool that refuses it cannot have indexes.
const MARKER_KEY: &[u8] = b"format";

/// A command of the same kind as that which blocklists a former owner; it changes nothing.
const UNBLOCK_NOBODY: &str =
    r#"{"prefix":"osd blocklist","blocklistop":"rm","addr":"0.0.0.0:0/1"}"#;

/// The pool, and the client that opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The RADOS pool of heads, logs, packs and indexes: a replicated one.
    pub pool: String,
    /// The RADOS pool of volumes' data; `None`: the same one.
    pub data_pool: Option<String>,
    /// The namespace in both; empty: the default one.
    pub namespace: String,
    /// Ceph's configuration; `None`: Ceph's default file.
    pub conf: Option<PathBuf>,
    /// The client, without `client.`.
    pub client: String,
    /// The file with the key; `None`: the one that Ceph's configuration names.
    pub keyring: Option<PathBuf>,
    /// The id that the cluster must have; empty: any.
    pub fsid: String,
}

/// The content of the marker.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    format: u32,
    #[serde(default)]
    incompatible: Vec<String>,
}

/// A pool that is open.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) cluster: Cluster,
    pub(crate) metadata: Pool,
    pub(crate) data: Pool,
    pub(crate) completions: Completions,
    pub(crate) fsid: String,
}

impl Options {
    /// The name of the pool, for messages.
    pub(crate) fn name(&self) -> String {
        match self.namespace.as_str() {
            "" => self.pool.clone(),
            namespace => format!("{}/{namespace}", self.pool),
        }
    }

    /// The RADOS pool of volumes' data.
    pub(crate) fn data_pool(&self) -> &str {
        self.data_pool.as_deref().unwrap_or(&self.pool)
    }

    /// The caps that the client needs, in the syntax of `ceph auth`.
    fn caps(&self) -> String {
        let osd = |pool: &str| {
            let namespace = match self.namespace.as_str() {
                "" => String::new(),
                namespace => format!(" namespace={namespace}"),
            };
            format!("allow rwx pool={pool}{namespace}")
        };
        let mut osds = osd(&self.pool);
        if let Some(data) = &self.data_pool {
            osds = format!("{osds}, {}", osd(data));
        }
        format!(
            "ceph auth get-or-create client.{} mon 'allow r, allow command \"osd blocklist\"' osd '{osds}'",
            self.client
        )
    }

    fn error(&self, code: ErrorCode, what: impl std::fmt::Display) -> Error {
        Error::new(code, format!("RADOS pool `{}`: {what}", self.name()))
    }

    /// Why the connection failed, with the remedy.
    fn not_connected(&self, error: &RadosError) -> Error {
        let code = error.code();
        let who = format!("client.{}", self.client);
        match code.errno() {
            libc::ETIMEDOUT => self
                .error(
                    ErrorCode::Unavailable,
                    format_args!(
                        "no monitor of the cluster answers {who} within {} s",
                        TIMEOUT.as_secs()
                    ),
                )
                .with_hint(format!(
                    "look at `mon host` in {}, and whether the monitors run and can be reached",
                    self.conf_name()
                )),
            libc::EACCES | libc::EPERM => self
                .error(
                    ErrorCode::Denied,
                    format_args!("the cluster does not accept the key of {who}"),
                )
                .with_hint(format!(
                    "its keyring must hold what `ceph auth get {who}` prints; to make it: {}",
                    self.caps()
                )),
            libc::ENOENT => self
                .error(
                    ErrorCode::NotFound,
                    format_args!(
                        "{error}: a file is missing: {}, or the keyring with the key of {who}",
                        self.conf_name()
                    ),
                )
                .with_hint("give --ceph-conf and --keyring"),
            _ => self.error(code_of(code), format_args!("{error}: {code}")),
        }
    }

    fn conf_name(&self) -> String {
        self.conf.as_ref().map_or_else(
            || "/etc/ceph/ceph.conf".to_owned(),
            |conf| conf.display().to_string(),
        )
    }

    fn connect(&self) -> Result<(Cluster, String), Error> {
        let options = ConnectOptions {
            conf: self.conf.clone(),
            client: self.client.clone(),
            keyring: self.keyring.clone(),
            timeout: TIMEOUT,
        };
        let cluster = Cluster::connect(&options).map_err(|error| self.not_connected(&error))?;
        let fsid = cluster.fsid().map_err(|error| self.not_connected(&error))?;
        if !self.fsid.is_empty() && self.fsid != fsid {
            let text = format!(
                "it is in the cluster {}, but {} leads to the cluster {fsid}",
                self.fsid,
                self.conf_name()
            );
            return Err(self
                .error(ErrorCode::Invalid, text)
                .with_hint("correct the configuration of Ceph, or `fsid` in that of the node"));
        }
        Ok((cluster, fsid))
    }

    fn open_pool(&self, cluster: &Cluster, name: &str) -> Result<Pool, Error> {
        let pool = cluster.pool(name, &self.namespace).map_err(|error| {
            let code = error.code();
            match code {
                Code::NOT_FOUND => self
                    .error(ErrorCode::NotFound, format_args!("the cluster has no pool `{name}`"))
                    .with_hint(format!("`ceph osd pool create {name}`, then `ceph osd pool application enable {name} archipelago`")),
                _ => self.error(code_of(code), format_args!("{error}: {code}")),
            }
        })?;
        let alignment = pool.alignment().map_err(|error| {
            let code = error.code();
            self.error(code_of(code), format_args!("{error}: {code}"))
        })?;
        match alignment {
            None => Ok(pool),
            Some(_) => Err(self
                .error(ErrorCode::Unsupported, format_args!("`{name}` is erasure-coded and takes no overwrites"))
                .with_hint(format!("`ceph osd pool set {name} allow_ec_overwrites true` (on BlueStore), or another --data-pool"))),
        }
    }

    /// An error that names what is denied to the client, and the caps that it needs.
    fn denied(&self, what: &str) -> Error {
        self.error(ErrorCode::Denied, format_args!("client.{} may not {what}", self.client))
            .with_hint(format!("{}; for a client that is there, `ceph auth caps` in place of `ceph auth get-or-create`", self.caps()))
    }

    /// Checks that the client may blocklist a former owner, by a command about a client that does not exist.
    fn check_blocklist(&self, cluster: &Cluster) -> Result<(), Error> {
        match cluster.mon_command(UNBLOCK_NOBODY) {
            Err(error) if code_of(error.code()) == ErrorCode::Denied => {
                Err(self.denied("have another client blocklisted"))
            }
            _ => Ok(()),
        }
    }

    /// Why a first call failed.
    fn refused(&self, code: Option<Code>) -> Error {
        let Some(code) = code else {
            return self
                .error(ErrorCode::Unavailable, format_args!("the cluster does not answer within {} s", TIMEOUT.as_secs()))
                .with_hint("`ceph health detail` and `ceph pg stat` show whether its placement groups are active");
        };
        match code_of(code) {
            ErrorCode::Denied => self.denied("use it"),
            ErrorCode::Unsupported => self
                .error(
                    ErrorCode::Unsupported,
                    "it has no sorted maps: it is erasure-coded",
                )
                .with_hint("give a replicated pool with --rados, and this one with --data-pool"),
            ErrorCode::NoSpace => self.error(
                ErrorCode::NoSpace,
                "the cluster, or the pool's quota, is full",
            ),
            other => self.error(other, code),
        }
    }

    /// Reads the object that marks a pool as one of ours; returns whether it exists.
    fn read_marker(&self, pool: &Pool, completions: &mut Completions) -> Result<bool, Error> {
        let op = ReadOp::new().read(0, MARKER_LEN_MAX);
        pool.query(completions, 0, MARKER, op);
        let Some(completed) = completions.wait_for(TIMEOUT) else {
            return Err(self.refused(None));
        };
        let found = match (completed.result, completed.payload) {
            (Ok(_), Payload::Found(found)) => found,
            (Err(Code::NOT_FOUND), _) => return Ok(false),
            (Err(code), _) => return Err(self.refused(Some(code))),
            (Ok(_), _) => return Err(self.refused(None)),
        };
        let marker: Marker = serde_json::from_slice(&found.data).map_err(|_other| {
            self.error(
                ErrorCode::Damaged,
                "the object `pool` in it is none of ours",
            )
        })?;
        if marker.format != FORMAT || !marker.incompatible.is_empty() {
            let text = format!(
                "it has format {} with features {:?}, and this program knows format {FORMAT}",
                marker.format, marker.incompatible
            );
            return Err(self.error(ErrorCode::UnsupportedFormat, text));
        }
        Ok(true)
    }

    /// Makes the marker; one that another process has just made is accepted.
    fn make_marker(&self, pool: &Pool, completions: &mut Completions) -> Result<(), Error> {
        let marker = Marker {
            format: FORMAT,
            incompatible: Vec::new(),
        };
        let text = serde_json::to_vec(&marker).unwrap_or_default();
        let op = WriteOp::new()
            .create_exclusive()
            .write_full(text)
            .set_key(MARKER_KEY, b"1");
        pool.operate(completions, 0, MARKER, op);
        match completions.wait_for(TIMEOUT).map(|done| done.result) {
            Some(Ok(_) | Err(Code::EXISTS)) => Ok(()),
            Some(Err(code)) => Err(self.refused(Some(code))),
            None => Err(self.refused(None)),
        }
    }
}

/// What to do about a missing marker.
enum Marked {
    /// Fail.
    Already,
    /// Make it.
    Now,
}

fn open_with(options: &Options, marked: &Marked) -> Result<Opened, Error> {
    let (cluster, fsid) = options.connect()?;
    let metadata = options.open_pool(&cluster, &options.pool)?;
    let data = options.open_pool(&cluster, options.data_pool())?;
    let mut completions = Completions::new()
        .map_err(|error| options.error(ErrorCode::Io, format_args!("an eventfd: {error}")))?;
    if !options.read_marker(&metadata, &mut completions)? {
        match marked {
            Marked::Now => options.make_marker(&metadata, &mut completions)?,
            Marked::Already => {
                return Err(options
                    .error(ErrorCode::NotFound, "it was not made a pool of Archipelago")
                    .with_hint("`archipelago pool add NAME --rados POOL` does that"));
            }
        }
    }
    Ok(Opened {
        cluster,
        metadata,
        data,
        completions,
        fsid,
    })
}

/// Makes a RADOS pool one of ours, if it is not yet, and checks that `claimant` can use it. Returns the cluster's id.
///
/// # Errors
/// Why the pool cannot be used, with the remedy; [`ErrorCode::InUse`] naming the node that serves it.
pub fn check(options: &Options, claimant: &Claimant) -> Result<String, Error> {
    let mut opened = open_with(options, &Marked::Now)?;
    let name = options.name();
    Owner::look(&mut opened.place(&name), claimant)?;
    options.check_blocklist(&opened.cluster)?;
    Ok(opened.fsid)
}

impl Opened {
    /// The place of the owner's record.
    fn place<'a>(&'a mut self, name: &'a str) -> Place<'a> {
        Place {
            cluster: &self.cluster,
            pool: &self.metadata,
            completions: &mut self.completions,
            timeout: TIMEOUT,
            name,
        }
    }
}

/// Opens a pool for `claimant`.
pub(crate) fn open(options: &Options, claimant: &Claimant) -> Result<(Opened, Owner), Error> {
    let mut opened = open_with(options, &Marked::Already)?;
    let name = options.name();
    let owner = Owner::claim(&mut opened.place(&name), claimant)?;
    Ok((opened, owner))
}
