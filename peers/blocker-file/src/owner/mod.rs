//! The owner of a pool: one incarnation at a time, over all hosts that reach its directory.
//!
//! Everywhere that a pool is served, its lock excludes processes of one host. Whether it excludes processes of other hosts (NFS, FUSE)
//! cannot be determined from here, so the directory also contains a record of the owner, which others find.
//!
//! Invariants
//! - The record changes its owner by a rename from the name that the new owner has read: of two candidates only one finds the file. A name
//!   is never used twice. Rename is atomic on the server of NFS and below FUSE, and needs no free space.
//! - The name contains all that a decision needs ([`check`]). The content ([`record`]) is for people, and its change is the heartbeat. So a
//!   process may die between any two steps.
//! - A silent owner on another host is treated as dead only if a person declares it so ([`Claim::TakeOver`]): nothing stops its writes.
//!   Times of two hosts are never compared.
//! - Where the lock excludes everybody else, the record decides nothing, and a pool without a record is served.
//! - What a node keeps only as long as nobody else has had the pool is removed before the record changes its owner ([`tenure`]).

mod check;
mod heartbeat;
mod name;
mod record;
mod records;
mod tenure;

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use archipelago_protocol::{Error, ErrorCode, date};
use archipelago_runtime::{Clock, SystemClock};
use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::signal::kill;
use nix::sys::stat::{major, minor};
use nix::unistd::Pid;

pub use archipelago_blocker::Claim;
use check::{Reach, Verdict, check};
use heartbeat::{Heartbeat, PERIOD};
pub(crate) use name::Name;
use name::Place;
use record::Record;
pub(crate) use records::reserve;
pub use records::stray_records;
use records::{describe, latest, look, names};
use tenure::Tenure;

use crate::access;
use crate::errors::failed;
use crate::layout::Layout;

/// How long an owner must be silent to be treated as ended, where that is possible at all: six beats.
const SILENCE: Duration = Duration::from_secs(12);
const _: () = assert!(SILENCE.as_secs() >= 6 * PERIOD.as_secs());
/// Milliseconds between two reads of a record that is watched.
const LOOK_MS: u16 = 200;
/// Failed renames, because others were faster, after which this process gives up.
const TRIES: usize = 16;
/// This host, as owner records distinguish it from others. 0: unknown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Host {
    /// The machine; the same after reboots.
    pub machine: u32,
    /// The running kernel.
    pub boot: u64,
    /// The namespace of process ids.
    pub namespace: u32,
    /// Its name, for messages.
    pub name: String,
}

/// The process that opens a pool.
#[derive(Debug, Clone)]
pub struct Claimant {
    /// Its host.
    pub host: Host,
    /// The node's directory of sockets, for messages.
    pub node: PathBuf,
    /// Its right to.
    pub claim: Claim,
    /// Files that are valid only as long as nobody else has had the pool: otherwise they are removed before it is opened.
    pub kept: Option<PathBuf>,
    /// Called, on a thread of its own, when another node has taken the pool over: nothing may be written any more.
    pub lost: fn(&Error),
}

impl Default for Claimant {
    /// A host without any known number.
    fn default() -> Self {
        Claimant {
            host: Host::default(),
            node: PathBuf::new(),
            claim: Claim::Start,
            kept: None,
            lost: |_error| {},
        }
    }
}

/// The ownership of a pool. Released when dropped: by then no thread writes any more.
#[derive(Debug)]
pub(crate) struct Owner {
    layout: Layout,
    name: Name,
    since: u64,
    /// Present if other hosts may look.
    heartbeat: Option<Heartbeat>,
}

impl Owner {
    /// The ownership, as a text.
    pub(crate) fn text(&self) -> String {
        let (incarnation, since) = (self.name.incarnation, date(self.since));
        let alive = match &self.heartbeat {
            Some(heartbeat) => heartbeat.text(SystemClock.now()),
            None => "on a file system of this host alone".to_owned(),
        };
        format!("this node, incarnation {incarnation}, since {since}, {alive}")
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // A heartbeat after the release would be without an owner.
        drop(self.heartbeat.take());
        let released = fs::rename(
            self.layout.owner(self.name),
            self.layout.owner(self.name.released()),
        );
        match released {
            // Another node has taken it over.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(
                "{}: the pool's owner record could not be released: {error}",
                self.layout.owner(self.name).display()
            ),
            Ok(()) => {}
        }
    }
}

/// Makes this process the owner of the pool, whose lock it has. `None`: there is no record, and none is needed.
///
/// # Errors
/// [`ErrorCode::InUse`] naming the owner, [`ErrorCode::Stale`] if a restart finds that another host has had the pool; otherwise the error
/// of the file system.
pub(crate) fn claim(
    layout: &Layout,
    claimant: &Claimant,
    clock: &dyn Clock,
) -> Result<Option<Owner>, Error> {
    let reach = match access::is_of_one_host(layout.directory()) {
        true => Reach::ThisHost,
        false => Reach::OtherHosts,
    };
    match claim_as(layout, claimant, clock, reach, SILENCE) {
        Ok(owner) => Ok(Some(owner)),
        Err(error) if reach == Reach::ThisHost => {
            // Without a record, later starts cannot find out who has had the pool.
            let ended = Tenure::new(claimant.kept.as_deref()).end(layout);
            ended.map_err(|error| not_ended(layout, &error))?;
            tracing::warn!(
                "{error}; the pool is served without an owner record: its lock excludes others"
            );
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn not_ended(layout: &Layout, error: &io::Error) -> Error {
    let what = "remove what is not right any more after others had";
    failed(what, layout.directory(), error)
}

fn claim_as(
    layout: &Layout,
    claimant: &Claimant,
    clock: &dyn Clock,
    reach: Reach,
    silence: Duration,
) -> Result<Owner, Error> {
    let directory = layout.directory();
    let failed =
        |what, error: io::Error| failed(&format!("{what} the owner record in"), directory, &error);
    let own = place(directory, &claimant.host).map_err(|error| failed("prepare", error))?;
    for _ in 0..TRIES {
        let Some(found) = latest(layout).map_err(|error| failed("look for", error))? else {
            reserve(layout).map_err(|error| failed("make", error))?;
            continue;
        };
        let verdict = || check(found, own, reach, claimant.claim, is_gone);
        match verdict() {
            Verdict::Take => {}
            Verdict::Lost => return Err(heartbeat::lost(layout, found)),
            Verdict::TakeIfSilent | Verdict::Refuse => {
                let seen = watch(layout, found, clock, silence);
                match seen.map_err(|error| failed("watch", error))? {
                    Seen::Heartbeat => return Err(alive(layout, found)),
                    Seen::Successor => continue,
                    // A process that was just ending has ended by now.
                    Seen::Silence if verdict() == Verdict::Refuse => {
                        return Err(silent(layout, found, silence));
                    }
                    Seen::Silence => {}
                }
            }
        }
        if reach == Reach::OtherHosts && found.place.is_some() {
            tracing::warn!(
                "pool `{}`: its owner did not release it, and has ended: {}",
                directory.display(),
                describe(layout, found)
            );
        }
        let Some(next) = found.succeeded_by(own) else {
            let message = format!("pool `{}` has had too many owners", directory.display());
            return Err(Error::new(ErrorCode::Damaged, message));
        };
        match Tenure::new(claimant.kept.as_deref()).go_on(layout, found, next) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(not_ended(layout, &error)),
        }
        // The rename compares: the old name does not exist any more if another process was faster, or if the last try was carried out
        // without an answer.
        match fs::rename(layout.owner(found), layout.owner(next)) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("take", error)),
        }
        return taken(layout, claimant, clock, reach, next);
    }
    let message = format!(
        "pool `{}` was taken by other nodes repeatedly while this node tried to take it",
        directory.display()
    );
    Err(Error::new(ErrorCode::InUse, message).with_hint("start one node at a time"))
}

/// The rest, once the record is called `name`: makes it durable, writes its content, and starts the heartbeat.
fn taken(
    layout: &Layout,
    claimant: &Claimant,
    clock: &dyn Clock,
    reach: Reach,
    name: Name,
) -> Result<Owner, Error> {
    let directory = layout.directory();
    let failed =
        |what, error: io::Error| failed(&format!("{what} the owner record in"), directory, &error);
    let names = names(layout).map_err(|error| failed("look for", error))?;
    if !names.contains(&name) {
        let message = format!(
            "pool `{}` was taken by another node at the same time",
            directory.display()
        );
        return Err(Error::new(ErrorCode::InUse, message).with_hint("start one node at a time"));
    }
    if names
        .iter()
        .any(|other| other.incarnation >= name.incarnation && *other != name)
    {
        // The rename was not atomic (object stores behind FUSE): both processes come here.
        let _removed = fs::remove_file(layout.owner(name));
        let message = format!(
            "pool `{}`: its file system ({}) let two nodes rename one file",
            directory.display(),
            access::file_system_name(directory)
        );
        return Err(Error::new(ErrorCode::Unsupported, message)
            .with_hint("keep the pool on a file system with an atomic rename"));
    }
    for former in names.iter().filter(|former| **former != name) {
        // From a process that made the first record when there was one already, or from an older copy of the pool.
        if let Err(error) = fs::remove_file(layout.owner(*former)) {
            tracing::warn!("{}: {error}", layout.owner(*former).display());
        }
    }
    Tenure::new(claimant.kept.as_deref()).had(layout, name);
    let now = clock.wall_seconds();
    let record = Record {
        incarnation: name.incarnation,
        host: claimant.host.name.clone(),
        process: std::process::id(),
        node: claimant.node.clone(),
        since: now,
        heartbeat: now,
        heartbeats: 0,
    };
    let path = layout.owner(name);
    let written = OpenOptions::new().write(true).open(&path).and_then(|file| {
        record.write(&file)?;
        match reach {
            // The sync of the start follows, and makes it durable.
            Reach::ThisHost => Ok(()),
            Reach::OtherHosts => file.sync_data(),
        }
    });
    if let Err(error) = written {
        tracing::warn!(
            "{}: who owns the pool could not be written: {error}",
            path.display()
        );
    }
    let mut owner = Owner {
        layout: layout.clone(),
        name,
        since: now,
        heartbeat: None,
    };
    if reach == Reach::OtherHosts {
        let heartbeat = Heartbeat::start(layout, name, record, claimant.lost);
        owner.heartbeat = Some(heartbeat.map_err(|error| failed("start a thread for", error))?);
    }
    Ok(owner)
}

/// The place of this process, for a pool in `directory`.
fn place(directory: &Path, host: &Host) -> io::Result<Place> {
    Ok(Place {
        machine: host.machine,
        boot: host.boot,
        device: kernel_number(fs::metadata(directory)?.dev()),
        namespace: host.namespace,
        process: std::process::id(),
    })
}

/// A device's number in the kernel's format of 32 bits; `stat` has the same number, spread over 64.
fn kernel_number(device: u64) -> u32 {
    let (major, minor) = (major(device), minor(device));
    u32::try_from(major << 20 | minor).unwrap_or(0)
}

/// Whether no process has this id.
fn is_gone(process: u32) -> bool {
    match i32::try_from(process) {
        Ok(process) => kill(Pid::from_raw(process), None) == Err(Errno::ESRCH),
        Err(_no_process_id) => true,
    }
}

/// The result of watching an owner.
enum Seen {
    Silence,
    Heartbeat,
    /// The record has another name.
    Successor,
}

/// Watches the record called `name` for a change, for as long as `silence`.
fn watch(layout: &Layout, name: Name, clock: &dyn Clock, silence: Duration) -> io::Result<Seen> {
    let pool = layout.directory().display();
    tracing::info!(
        "pool `{pool}`: its record names an owner: watched for a heartbeat for {} s: {}",
        silence.as_secs(),
        describe(layout, name)
    );
    let deadline = clock.now() + silence;
    let Some(first) = look(layout, name)? else {
        return Ok(Seen::Successor);
    };
    while clock.now() < deadline {
        let _interrupted = nix::poll::poll(&mut [], PollTimeout::from(LOOK_MS));
        match look(layout, name)? {
            None => return Ok(Seen::Successor),
            Some(then) if then != first => return Ok(Seen::Heartbeat),
            Some(_same) => {}
        }
    }
    // A name in this host's cache might have hidden a successor.
    match latest(layout)? {
        Some(latest) if latest == name => Ok(Seen::Silence),
        Some(_) | None => Ok(Seen::Successor),
    }
}

fn alive(layout: &Layout, found: Name) -> Error {
    let message = format!(
        "pool `{}` is served by another node: {}; its heartbeat goes on",
        layout.directory().display(),
        describe(layout, found)
    );
    Error::new(ErrorCode::InUse, message)
        .with_hint("stop that node, on its host: `archipelago node stop`")
}

fn silent(layout: &Layout, found: Name, silence: Duration) -> Error {
    let message = format!(
        "pool `{}` belongs to another node, which has not released it: {}; no heartbeat for {} s",
        layout.directory().display(),
        describe(layout, found),
        silence.as_secs()
    );
    Error::new(ErrorCode::InUse, message).with_hint(
        "it may still write: stop it on its host, or make sure that this host is off or cut off from the storage; then \
         `archipelago node start --take-over`, or `archipelago pool take-over` if the node runs",
    )
}

#[cfg(test)]
mod tests;
