//! The attachments, stored in a file so that after a restart the daemon serves the same ones at the same paths.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use archipelago_api::durable;
use archipelago_api::types::Attachment;
use archipelago_protocol::error::UNSUPPORTED_FORMAT_HINT;
use archipelago_protocol::{AttachmentId, EndpointSpec, Error, ErrorCode, Lineage, Name};
use serde::{Deserialize, Serialize};

/// Version of the file, newest first.
///
/// 4: new are NBD devices.
/// 3: the kinds of a version have their own number: new are ublk devices, files and loop devices; still read.
/// 2: attachments with a number and a kind, and the number of the next one; still read.
/// 1: vhost-user attachments; still read.
const VERSION: u32 = 4;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    next_id: AttachmentId,
    attachments: Vec<Attachment>,
}

#[derive(Debug, Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContentV1 {
    #[serde(rename = "version")]
    _version: u32,
    attachments: Vec<AttachmentV1>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AttachmentV1 {
    name: Name,
    lineage: Lineage,
    socket: PathBuf,
    queues: u16,
    read_only: bool,
}

impl From<ContentV1> for Content {
    fn from(old: ContentV1) -> Content {
        let numbered = (1..).map(AttachmentId).zip(old.attachments);
        let attachments: Vec<Attachment> = numbered
            .map(|(id, old)| Attachment {
                id,
                pool: None,
                name: old.name,
                lineage: old.lineage,
                read_only: old.read_only,
                endpoint: EndpointSpec::VhostUser {
                    socket: old.socket,
                    queues: old.queues,
                },
            })
            .collect();
        Content {
            version: VERSION,
            next_id: AttachmentId(attachments.len() as u64 + 1),
            attachments,
        }
    }
}

/// The content of the file; otherwise the code of the error, and its reason.
fn parse(bytes: &[u8]) -> Result<Content, (ErrorCode, String)> {
    fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, (ErrorCode, String)> {
        serde_json::from_slice(bytes).map_err(|error| (ErrorCode::Damaged, error.to_string()))
    }
    match read::<Versioned>(bytes)?.version {
        VERSION | 3 | 2 => read(bytes),
        1 => read::<ContentV1>(bytes).map(Content::from),
        version => {
            let why = format!("has version {version}, this program knows 1 to {VERSION}");
            Err((ErrorCode::UnsupportedFormat, why))
        }
    }
}

/// The attachments of a node. After each call, file and memory have the same content.
#[derive(Debug)]
pub(crate) struct Attachments {
    path: PathBuf,
    by_id: BTreeMap<AttachmentId, Attachment>,
    /// The number of the next attachment; a number is never used twice.
    next_id: AttachmentId,
    /// Attachments of pools that the node does not have.
    orphans: BTreeSet<AttachmentId>,
}

impl Attachments {
    /// Reads the file; if it does not exist, nothing is attached.
    ///
    /// # Errors
    /// [`ErrorCode::Damaged`] if the file does not parse; [`ErrorCode::UnsupportedFormat`] if another version of the program wrote it.
    /// Attachments must not be forgotten silently.
    pub(crate) fn read(path: PathBuf) -> Result<Attachments, Error> {
        let content = match std::fs::read(&path) {
            Ok(bytes) => parse(&bytes).map_err(|(code, why)| {
                let hint = match code {
                    ErrorCode::UnsupportedFormat => UNSUPPORTED_FORMAT_HINT,
                    _ => "move the file away to start with nothing attached",
                };
                Error::new(code, format!("{}: {why}", path.display())).with_hint(hint)
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Content {
                version: VERSION,
                next_id: AttachmentId(1),
                attachments: Vec::new(),
            },
            Err(error) => {
                let text = format!("{}: {error}", path.display());
                return Err(Error::new(ErrorCode::Io, text));
            }
        };
        let attachments = content.attachments.into_iter();
        Ok(Attachments {
            path,
            by_id: attachments.map(|one| (one.id, one)).collect(),
            next_id: content.next_id,
            orphans: BTreeSet::new(),
        })
    }

    /// All attachments, in order of their numbers.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Attachment> {
        self.by_id.values()
    }

    /// Whether the attachment `id` is recorded.
    pub(crate) fn has(&self, id: AttachmentId) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Numbers of the ublk devices of attachments.
    pub(crate) fn ublk_devices(&self) -> impl Iterator<Item = u32> {
        self.all().filter_map(|one| match one.endpoint {
            EndpointSpec::Ublk { device, .. } => Some(device),
            _ => None,
        })
    }

    /// Numbers of the NBD devices of attachments.
    pub(crate) fn nbd_devices(&self) -> impl Iterator<Item = u32> {
        self.all().filter_map(|one| match one.endpoint {
            EndpointSpec::NbdDevice { device, .. } => Some(device),
            _ => None,
        })
    }

    /// The attachments of `lineage`. All are in one pool: if a node has a pool and a copy of it, it attaches volumes of only one of them.
    pub(crate) fn of_lineage(&self, lineage: Lineage) -> impl Iterator<Item = &Attachment> {
        self.all().filter(move |one| one.lineage == lineage)
    }

    /// The attachments of the volume `lineage` of `pool`. A copy of that pool has another volume with this lineage.
    pub(crate) fn of_volume<'a>(
        &'a self,
        pool: &'a Name,
        lineage: Lineage,
    ) -> impl Iterator<Item = &'a Attachment> {
        self.of_pool(pool).filter(move |one| one.lineage == lineage)
    }

    /// Whether the volume `lineage` of `pool` is attached.
    pub(crate) fn has_volume(&self, pool: &Name, lineage: Lineage) -> bool {
        self.of_volume(pool, lineage).next().is_some()
    }

    /// The attachments of volumes of `pool`.
    pub(crate) fn of_pool<'a>(&'a self, pool: &'a Name) -> impl Iterator<Item = &'a Attachment> {
        self.all()
            .filter(move |one| one.pool.as_ref() == Some(pool))
    }

    /// Sets the pool of attachments that a node with one pool recorded without it. The change is durable: once there are more pools, only
    /// this record contains the pool.
    ///
    /// # Errors
    /// The error of writing the file; the memory has the change nevertheless.
    pub(crate) fn set_pool(&mut self, pool: &Name) -> Result<(), Error> {
        if self.all().all(|one| one.pool.is_some()) {
            return Ok(());
        }
        for attachment in self.by_id.values_mut() {
            attachment.pool.get_or_insert_with(|| pool.clone());
        }
        self.commit(self.by_id.clone())
    }

    /// Finds, at the start of a node, attachments of pools that the node does not have: they are kept but not served.
    pub(crate) fn find_orphans<T>(&mut self, pools: &BTreeMap<Name, T>) {
        let has = |one: &Attachment| {
            one.pool
                .as_ref()
                .is_some_and(|pool| pools.contains_key(pool))
        };
        self.orphans = self
            .all()
            .filter(|one| !has(one))
            .map(|one| one.id)
            .collect();
        for one in self.all().filter(|one| !has(one)) {
            tracing::warn!(
                "`{}` is attached and not served: the node has no pool `{}`",
                one.name,
                one.pool.as_ref().map_or("?", |pool| pool.as_str())
            );
        }
    }

    /// The pool `pool` is removed from the node: its attachments are kept but not served.
    pub(crate) fn orphan(&mut self, pool: &Name) {
        let of_pool: Vec<AttachmentId> = self.of_pool(pool).map(|one| one.id).collect();
        self.orphans.extend(of_pool);
    }

    /// The pool `pool` has been added to the node again.
    pub(crate) fn adopt(&mut self, pool: &Name) {
        let of_pool: Vec<AttachmentId> = self.of_pool(pool).map(|one| one.id).collect();
        self.orphans.retain(|id| !of_pool.contains(id));
    }

    /// Whether the attachment `id` belongs to a pool that the node does not have.
    pub(crate) fn is_orphan(&self, id: AttachmentId) -> bool {
        self.orphans.contains(&id)
    }

    /// A number for another attachment.
    pub(crate) fn next_id(&mut self) -> AttachmentId {
        let id = self.next_id;
        self.next_id = AttachmentId(id.0 + 1);
        id
    }

    /// Adds `attachment`.
    pub(crate) fn insert(&mut self, attachment: Attachment) -> Result<(), Error> {
        let mut next = self.by_id.clone();
        next.insert(attachment.id, attachment);
        self.commit(next)
    }

    /// Removes the attachment `id`.
    pub(crate) fn remove(&mut self, id: AttachmentId) -> Result<(), Error> {
        let mut next = self.by_id.clone();
        next.remove(&id);
        self.commit(next)
    }

    /// Records the new name of the volume `lineage` of `pool`.
    pub(crate) fn rename(
        &mut self,
        pool: &Name,
        lineage: Lineage,
        name: &Name,
    ) -> Result<(), Error> {
        if !self.has_volume(pool, lineage) {
            return Ok(());
        }
        let mut next = self.by_id.clone();
        let is_of_volume =
            |one: &&mut Attachment| one.lineage == lineage && one.pool.as_ref() == Some(pool);
        for attachment in next.values_mut().filter(is_of_volume) {
            attachment.name = name.clone();
        }
        self.commit(next)
    }

    fn commit(&mut self, next: BTreeMap<AttachmentId, Attachment>) -> Result<(), Error> {
        let content = Content {
            version: VERSION,
            next_id: self.next_id,
            attachments: next.values().cloned().collect(),
        };
        let mut bytes = serde_json::to_vec_pretty(&content)
            .expect("paths of sockets are UTF-8, checked at attach");
        bytes.push(b'\n');
        durable::replace(&self.path, &bytes).map_err(|error| {
            let full = error.kind() == std::io::ErrorKind::StorageFull;
            let code = if full {
                ErrorCode::NoSpace
            } else {
                ErrorCode::Io
            };
            Error::new(code, format!("{}: {error}", self.path.display()))
        })?;
        self.by_id = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(id: u64, name: &str) -> Attachment {
        Attachment {
            id: AttachmentId(id),
            pool: None,
            name: name.parse().unwrap(),
            lineage: Lineage(id.into()),
            read_only: false,
            endpoint: EndpointSpec::VhostUser {
                socket: PathBuf::from(format!("/run/{id}.sock")),
                queues: 2,
            },
        }
    }

    #[test]
    fn what_was_attached_is_read_back_and_no_number_is_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attachments.json");
        let mut attachments = Attachments::read(path.clone()).unwrap();
        for name in ["a", "b"] {
            let id = attachments.next_id().0;
            attachments.insert(attachment(id, name)).unwrap();
        }
        let pool: Name = "p".parse().unwrap();
        attachments.set_pool(&pool).unwrap();
        let name = "c".parse().unwrap();
        attachments.rename(&pool, Lineage(1), &name).unwrap();
        let copy = "copy".parse().unwrap();
        let other = "d".parse().unwrap();
        attachments.rename(&copy, Lineage(1), &other).unwrap();
        attachments.remove(AttachmentId(2)).unwrap();
        let mut read = Attachments::read(path).unwrap();
        let expected = Attachment {
            pool: Some(pool.clone()),
            ..attachment(1, "c")
        };
        assert_eq!(
            read.all().collect::<Vec<_>>(),
            [&expected],
            "the pool is noted, and a copy's volume is another one"
        );
        assert!(read.of_volume(&pool, Lineage(1)).eq([&expected]));
        assert!(!read.has_volume(&copy, Lineage(1)));
        assert!(read.of_lineage(Lineage(1)).eq([&expected]));
        assert_eq!(read.next_id(), AttachmentId(3));
    }

    #[test]
    fn the_file_of_version_1_is_read_and_the_next_change_writes_this_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attachments.json");
        let old = r#"{
  "version": 1,
  "attachments": [
    {"name": "a", "lineage": "00000000000000000000000000000001", "socket": "/run/1.sock", "queues": 2, "read_only": false},
    {"name": "b", "lineage": "00000000000000000000000000000002", "socket": "/run/2.sock", "queues": 2, "read_only": false}
  ]
}"#;
        std::fs::write(&path, old).unwrap();
        let mut read = Attachments::read(path.clone()).unwrap();
        let both = [attachment(1, "a"), attachment(2, "b")];
        assert_eq!(read.all().cloned().collect::<Vec<_>>(), both);
        assert_eq!(read.next_id(), AttachmentId(3));
        read.remove(AttachmentId(1)).unwrap();
        let written = Attachments::read(path.clone()).unwrap();
        assert_eq!(written.all().cloned().collect::<Vec<_>>(), both[1..]);
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("\"version\": 4") && text.contains("\"kind\": \"vhost-user\""));
    }

    #[test]
    fn a_damaged_file_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attachments.json");
        for content in [
            "",
            "{",
            r#"{"version":1,"attachments":[],"x":1}"#,
            r#"{"version":2,"attachments":[]}"#,
            r#"{"version":3,"attachments":[]}"#,
            r#"{"version":4,"attachments":[]}"#,
        ] {
            std::fs::write(&path, content).unwrap();
            let error = Attachments::read(path.clone()).unwrap_err();
            assert_eq!(error.code, ErrorCode::Damaged);
            assert!(error.message.contains("attachments.json"));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn a_file_of_another_version_is_unsupported_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attachments.json");
        for content in [
            r#"{"version":0,"attachments":[]}"#,
            r#"{"version":9,"attached":{}}"#,
        ] {
            std::fs::write(&path, content).unwrap();
            let error = Attachments::read(path.clone()).unwrap_err();
            assert_eq!(error.code, ErrorCode::UnsupportedFormat);
            assert!(error.message.contains("attachments.json"));
            assert_eq!(error.hint, UNSUPPORTED_FORMAT_HINT);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }
}
