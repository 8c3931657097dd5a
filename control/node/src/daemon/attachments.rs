//! What is attached, kept in a file so that a restart of the daemon serves the same at the same paths.

use std::collections::BTreeMap;
use std::path::PathBuf;

use archipelago_protocol::{Error, ErrorCode, Lineage, Name};
use serde::{Deserialize, Serialize};

use crate::api::types::Attachment;
use crate::durable;

/// Version of the file, newest first.
///
/// 1: a list of attachments.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    attachments: Vec<Attachment>,
}

/// The attachments of a node. What the file says and what the memory says is the same after each call.
#[derive(Debug)]
pub(crate) struct Attachments {
    path: PathBuf,
    by_lineage: BTreeMap<Lineage, Attachment>,
}

impl Attachments {
    /// Reads the file; without one nothing is attached.
    ///
    /// # Errors
    /// [`ErrorCode::Damaged`] if it does not parse: what was attached must not be forgotten silently.
    pub(crate) fn read(path: PathBuf) -> Result<Attachments, Error> {
        let damaged = |why: String| {
            Error::new(ErrorCode::Damaged, format!("{}: {why}", path.display()))
                .with_hint("move the file away to start with nothing attached")
        };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Attachments {
                    path,
                    by_lineage: BTreeMap::new(),
                });
            }
            Err(error) => {
                return Err(Error::new(
                    ErrorCode::Io,
                    format!("{}: {error}", path.display()),
                ));
            }
        };
        let content: Content =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if content.version != VERSION {
            return Err(damaged(format!(
                "version {} is not {VERSION}",
                content.version
            )));
        }
        let by_lineage = content
            .attachments
            .into_iter()
            .map(|one| (one.lineage, one))
            .collect();
        Ok(Attachments { path, by_lineage })
    }

    /// All of them, in order of their lineages.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Attachment> {
        self.by_lineage.values()
    }

    pub(crate) fn get(&self, lineage: Lineage) -> Option<&Attachment> {
        self.by_lineage.get(&lineage)
    }

    /// Enters `attachment`, in place of an older one of the same lineage.
    pub(crate) fn insert(&mut self, attachment: Attachment) -> Result<(), Error> {
        let mut next = self.by_lineage.clone();
        next.insert(attachment.lineage, attachment);
        self.commit(next)
    }

    /// Forgets the attachment of `lineage`.
    pub(crate) fn remove(&mut self, lineage: Lineage) -> Result<(), Error> {
        let mut next = self.by_lineage.clone();
        next.remove(&lineage);
        self.commit(next)
    }

    /// Notes the new name of what has `lineage`.
    pub(crate) fn rename(&mut self, lineage: Lineage, name: &Name) -> Result<(), Error> {
        let mut next = self.by_lineage.clone();
        match next.get_mut(&lineage) {
            None => return Ok(()),
            Some(attachment) => attachment.name = name.clone(),
        }
        self.commit(next)
    }

    fn commit(&mut self, next: BTreeMap<Lineage, Attachment>) -> Result<(), Error> {
        let content = Content {
            version: VERSION,
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
        self.by_lineage = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(number: u128, name: &str) -> Attachment {
        let socket = PathBuf::from(format!("/run/{number}.sock"));
        Attachment {
            name: name.parse().unwrap(),
            lineage: Lineage(number),
            socket,
            queues: 2,
            read_only: false,
        }
    }

    #[test]
    fn what_was_attached_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attachments.json");
        let mut attachments = Attachments::read(path.clone()).unwrap();
        attachments.insert(attachment(1, "a")).unwrap();
        attachments.insert(attachment(2, "b")).unwrap();
        attachments
            .rename(Lineage(2), &"c".parse().unwrap())
            .unwrap();
        attachments.remove(Lineage(1)).unwrap();
        let read = Attachments::read(path).unwrap();
        assert_eq!(
            read.all().cloned().collect::<Vec<_>>(),
            [attachment(2, "c")]
        );
    }

    #[test]
    fn a_damaged_file_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attachments.json");
        for content in [
            "",
            "{",
            r#"{"version":9,"attachments":[]}"#,
            r#"{"version":1,"attachments":[],"x":1}"#,
        ] {
            std::fs::write(&path, content).unwrap();
            let error = Attachments::read(path.clone()).unwrap_err();
            assert_eq!(error.code, ErrorCode::Damaged);
            assert!(error.message.contains("attachments.json"));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }
}
