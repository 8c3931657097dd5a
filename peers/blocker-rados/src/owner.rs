//! The owner of a pool: one incarnation of one node's blocker at a time.
//!
//! The object `owner` names it, with the address that its client has in the cluster. It changes by compare-and-swap, and the new owner has
//! blocklisted the former address before: from then on no write of the former owner lands, wherever it runs and whatever it had in flight.
//!
//! Invariants
//! - Before the record is changed, every OSD that the new owner will use knows that the former one is blocklisted.
//! - A silent owner of another node is treated as dead only if a person declares it so ([`Claim::TakeOver`]).

use std::path::PathBuf;
use std::time::Duration;

use archipelago_blocker::Claim;
use archipelago_protocol::{Error, ErrorCode};
use librados_sys::{Cluster, Code, Completions, Payload, Pool, ReadOp};
use serde::{Deserialize, Serialize};

use crate::errors::code_of;
use crate::head_bytes::{decode, encode, is_lost, swap_op};
use crate::names::OWNER;

/// How long a former owner stays blocklisted: longer than a stopped process is resumed after.
const BLOCKLISTED_S: u32 = 30 * 24 * 3600;
/// Failed swaps, because others were faster, after which this process gives up.
const TRIES: usize = 8;
/// Longest record.
const LEN_MAX: usize = 4096;
/// Timeout for a release: the process is ending.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// The process that opens a pool.
#[derive(Debug, Clone)]
pub struct Claimant {
    /// The host, by a number that stays the same after reboots; 0: unknown.
    pub machine: u32,
    /// Its name, for messages.
    pub host: String,
    /// The node's directory of sockets.
    pub node: PathBuf,
    /// Its right to.
    pub claim: Claim,
    /// Called when another node has taken the pool over: nothing that this one writes lands any more.
    pub lost: fn(&Error),
}

/// The content of the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    machine: u32,
    host: String,
    node: PathBuf,
    /// The client's address, in the syntax of the blocklist.
    address: String,
    /// The owner has ended, with nothing in flight.
    released: bool,
}

impl Record {
    /// Whether the owner is an earlier incarnation on the same node. Copies of a machine have the same id, but seldom the same name.
    fn is_of(&self, claimant: &Claimant) -> bool {
        let is_same_host = self.machine == claimant.machine && self.host == claimant.host;
        self.machine != 0 && is_same_host && self.node == claimant.node
    }
}

/// What follows from the present record.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The pool has no owner.
    Take,
    /// The pool has an owner, which must be blocklisted first.
    Fence,
    /// The pool has another owner.
    Refuse,
    /// The pool has got another owner since this node had it.
    Lost,
}

fn check(record: Option<&Record>, claimant: &Claimant) -> Verdict {
    let Some(record) = record else {
        return Verdict::Take;
    };
    match (record.is_of(claimant), claimant.claim) {
        (true, _) if record.released => Verdict::Take,
        (true, _) => Verdict::Fence,
        (false, Claim::Restart) => Verdict::Lost,
        (false, _) if record.released => Verdict::Take,
        (false, Claim::TakeOver) => Verdict::Fence,
        (false, Claim::Start) => Verdict::Refuse,
    }
}

/// The context of a claim.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) pool: &'a Pool,
    pub(crate) completions: &'a mut Completions,
    /// Timeout of a call.
    pub(crate) timeout: Duration,
    /// The pool's name, for messages.
    pub(crate) name: &'a str,
}

impl Place<'_> {
    fn error(&self, what: &str, code: Option<Code>) -> Error {
        let (code, why) = match code {
            Some(code) => (code_of(code), code.to_string()),
            None => (ErrorCode::Unavailable, "no answer".to_owned()),
        };
        Error::new(code, format!("RADOS pool `{}`: {what}: {why}", self.name))
    }

    /// Version and content of the record.
    fn read(&mut self) -> Result<(u64, Option<Record>), Error> {
        let op = ReadOp::new().read(0, LEN_MAX);
        self.pool.query(self.completions, 0, OWNER, op);
        let what = "read who owns it";
        let Some(completed) = self.completions.wait_for(self.timeout) else {
            return Err(self.error(what, None));
        };
        match (completed.result, completed.payload) {
            (Err(Code::NOT_FOUND), _) => Ok((0, None)),
            (Err(code), _) => Err(self.error(what, Some(code))),
            (Ok(_), Payload::Found(found)) => {
                let decoded = decode(&found.data).and_then(|(version, content)| {
                    Some((version, serde_json::from_slice(content).ok()?))
                });
                let (version, record) = decoded.ok_or_else(|| {
                    let text = format!("RADOS pool `{}`: the object `owner` is damaged", self.name);
                    Error::new(ErrorCode::Damaged, text)
                })?;
                Ok((version, Some(record)))
            }
            (Ok(_), _) => Err(self.error(what, None)),
        }
    }

    /// Replaces version `version` of the record; `false` if another version is stored.
    fn swap(&mut self, version: u64, record: &Record, timeout: Duration) -> Result<bool, Error> {
        let content = serde_json::to_vec(record).unwrap_or_default();
        debug_assert!(
            encode(version, &content).len() <= LEN_MAX,
            "a path is shorter"
        );
        let op = swap_op(version, &content);
        self.pool.operate(self.completions, 0, OWNER, op);
        let what = "enter this node as its owner";
        match self.completions.wait_for(timeout).map(|done| done.result) {
            Some(Ok(_)) => Ok(true),
            Some(Err(code)) if is_lost(code) => Ok(false),
            Some(Err(code)) => Err(self.error(what, Some(code))),
            None => Err(self.error(what, None)),
        }
    }
}

/// The ownership of a pool.
#[derive(Debug)]
pub(crate) struct Owner {
    version: u64,
    record: Record,
}

impl Owner {
    /// Makes this client the owner.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] naming the owner; [`ErrorCode::Stale`] if a restart finds that another node has had the pool.
    pub(crate) fn claim(place: &mut Place<'_>, claimant: &Claimant) -> Result<Owner, Error> {
        let failed = |error: librados_sys::RadosError, name: &str| {
            let text = format!("RADOS pool `{name}`: {error}: {}", error.code());
            Error::new(code_of(error.code()), text)
        };
        let address = place.cluster.addresses();
        let record = Record {
            machine: claimant.machine,
            host: claimant.host.clone(),
            node: claimant.node.clone(),
            address: address.map_err(|error| failed(error, place.name))?,
            released: false,
        };
        for _ in 0..TRIES {
            let (version, found) = place.read()?;
            match (check(found.as_ref(), claimant), &found) {
                (Verdict::Take, _) | (Verdict::Fence, None) => {}
                (Verdict::Fence, Some(found)) => {
                    fence(place.cluster, &found.address)
                        .map_err(|error| failed(error, place.name))?;
                }
                (Verdict::Refuse, found) => return Err(in_use(place.name, found.as_ref())),
                (Verdict::Lost, found) => return Err(lost(place.name, found.as_ref())),
            }
            if place.swap(version, &record, place.timeout)? {
                return Ok(Owner {
                    version: version + 1,
                    record,
                });
            }
        }
        Err(in_use(place.name, None))
    }

    /// Checks whether the pool could be claimed.
    ///
    /// # Errors
    /// As [`Owner::claim`].
    pub(crate) fn look(place: &mut Place<'_>, claimant: &Claimant) -> Result<(), Error> {
        let (_version, found) = place.read()?;
        match check(found.as_ref(), claimant) {
            Verdict::Take | Verdict::Fence => Ok(()),
            Verdict::Refuse => Err(in_use(place.name, found.as_ref())),
            Verdict::Lost => Err(lost(place.name, found.as_ref())),
        }
    }

    /// Records that nothing is in flight any more. If the cluster does not answer, the next start blocklists this client.
    pub(crate) fn release(&self, place: &mut Place<'_>) {
        let record = Record {
            released: true,
            ..self.record.clone()
        };
        match place.swap(self.version, &record, RELEASE_TIMEOUT) {
            Ok(_) => {}
            Err(error) => tracing::warn!("the pool could not be released: {error}"),
        }
    }

    /// The ownership, as a text.
    pub(crate) fn text(&self) -> String {
        format!(
            "this node, as client {} of the cluster",
            self.record.address
        )
    }
}

/// Blocklists the client at `address`: no write of it lands from here on.
fn fence(cluster: &Cluster, address: &str) -> Result<(), librados_sys::RadosError> {
    tracing::info!("the client {address}, which had the pool, is blocklisted");
    cluster.blocklist(address, BLOCKLISTED_S)?;
    cluster.wait_for_latest_osdmap()
}

fn described(record: Option<&Record>) -> String {
    record.map_or_else(
        || "somebody else".to_owned(),
        |record| {
            format!(
                "the node `{}` on host `{}` (client {})",
                record.node.display(),
                record.host,
                record.address
            )
        },
    )
}

fn in_use(name: &str, record: Option<&Record>) -> Error {
    let text = format!("RADOS pool `{name}` is in use by {}", described(record));
    Error::new(ErrorCode::InUse, text).with_hint(
        "stop that node; if it cannot be reached any more, start this one with --take-over, or, if it runs, `archipelago pool take-over`: the cluster then refuses whatever the other one still writes",
    )
}

/// The error after another node has taken the pool over.
pub(crate) fn taken(name: &str) -> Error {
    let text = format!("RADOS pool `{name}` was taken over: the cluster refuses this client");
    Error::new(ErrorCode::Stale, text)
        .with_hint("this node has lost the pool to another one, and must not serve it")
}

fn lost(name: &str, record: Option<&Record>) -> Error {
    let text = format!(
        "RADOS pool `{name}` has got another owner: {}",
        described(record)
    );
    Error::new(ErrorCode::Stale, text)
        .with_hint("this node has lost the pool, and must not serve it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimant(machine: u32, node: &str, claim: Claim) -> Claimant {
        Claimant {
            machine,
            host: "here".to_owned(),
            node: node.into(),
            claim,
            lost: |_error| {},
        }
    }

    #[test]
    fn only_a_person_takes_a_pool_from_another_node() {
        use Claim::{Restart, Start, TakeOver};
        let record = |released| Record {
            machine: 7,
            host: "here".to_owned(),
            node: "/run/a".into(),
            address: "127.0.0.1:0/1".to_owned(),
            released,
        };
        for (machine, node, claim, released, expected) in [
            (7, "/run/a", Start, false, Verdict::Fence),
            (7, "/run/a", Restart, false, Verdict::Fence),
            (7, "/run/a", Start, true, Verdict::Take),
            (7, "/run/b", Start, false, Verdict::Refuse),
            (8, "/run/a", Start, false, Verdict::Refuse),
            (8, "/run/a", Start, true, Verdict::Take),
            (8, "/run/a", Restart, false, Verdict::Lost),
            (8, "/run/a", Restart, true, Verdict::Lost),
            (8, "/run/a", TakeOver, false, Verdict::Fence),
        ] {
            let claimant = claimant(machine, node, claim);
            let verdict = check(Some(&record(released)), &claimant);
            assert_eq!(verdict, expected, "{machine} {node} {claim:?} {released}");
        }
        assert_eq!(check(None, &claimant(7, "/run/a", Start)), Verdict::Take);
        let unknown = Record {
            machine: 0,
            ..record(false)
        };
        let verdict = check(Some(&unknown), &claimant(0, "/run/a", Start));
        assert_eq!(verdict, Verdict::Refuse);
        let copy = Record {
            host: "there".to_owned(),
            ..record(false)
        };
        let verdict = check(Some(&copy), &claimant(7, "/run/a", Start));
        assert_eq!(verdict, Verdict::Refuse);
    }
}
