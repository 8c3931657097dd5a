//! The content of an owner record: a description of the owner for people, and a number that grows with each heartbeat.
//!
//! Lines of `name value`, the last one a checksum of those before it, padded with blanks to one length: it is written in place and needs no
//! space. No decision depends on the content, except that it changes.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Length of the file.
pub(crate) const LEN: usize = 4096;
/// Longest host name and path that are kept: even with every character escaped, both fit.
const TEXT_LEN_MAX: usize = 1200;
const CHECKSUM: &str = "checksum ";

/// The owner of a pool, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Record {
    pub(crate) incarnation: u32,
    /// The host's name.
    pub(crate) host: String,
    pub(crate) process: u32,
    /// The node's directory of sockets.
    pub(crate) node: PathBuf,
    /// When it became the owner, and its last heartbeat: seconds since 1970 by its host's clock.
    pub(crate) since: u64,
    pub(crate) heartbeat: u64,
    pub(crate) heartbeats: u64,
}

/// At most [`TEXT_LEN_MAX`] bytes of `text` in the record's encoding: ASCII, one line.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for char in text.chars() {
        let next = char.escape_default().to_string();
        if escaped.len() + next.len() > TEXT_LEN_MAX {
            break;
        }
        escaped.push_str(&next);
    }
    escaped
}

impl Record {
    pub(crate) fn encode(&self) -> [u8; LEN] {
        let mut text = String::from("Owner of this pool, see docs/pool-format.md\n");
        let lines = [
            ("incarnation", self.incarnation.to_string()),
            ("host", escaped(&self.host)),
            ("process", self.process.to_string()),
            ("node", escaped(&self.node.to_string_lossy())),
            ("since", self.since.to_string()),
            ("heartbeat", self.heartbeat.to_string()),
            ("heartbeats", self.heartbeats.to_string()),
        ];
        for (name, value) in lines {
            // Writing to a string does not fail.
            let _written = writeln!(text, "{name} {value}");
        }
        let sum = crc32c::crc32c(text.as_bytes());
        let _written = writeln!(text, "{CHECKSUM}{sum:08x}");
        let mut bytes = [b' '; LEN];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        bytes[LEN - 1] = b'\n';
        bytes
    }

    /// The record in `bytes`; `None` if it is torn, damaged or missing.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Record> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (body, sum) = text.split_at(text.rfind(CHECKSUM)?);
        let sum = sum.strip_prefix(CHECKSUM)?.get(..8)?;
        if u32::from_str_radix(sum, 16).ok()? != crc32c::crc32c(body.as_bytes()) {
            return None;
        }
        let value = |name: &str| {
            body.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        };
        Some(Record {
            incarnation: value("incarnation")?.parse().ok()?,
            host: value("host")?.to_owned(),
            process: value("process")?.parse().ok()?,
            node: value("node")?.into(),
            since: value("since")?.parse().ok()?,
            heartbeat: value("heartbeat")?.parse().ok()?,
            heartbeats: value("heartbeats")?.parse().ok()?,
        })
    }

    /// Reads the record of `incarnation` from `file`; `None` if there is one of another incarnation, or none.
    pub(crate) fn read(file: &File) -> io::Result<Option<Record>> {
        let mut bytes = Vec::with_capacity(LEN);
        file.take(LEN as u64).read_to_end(&mut bytes)?;
        Ok(Record::decode(&bytes))
    }

    /// Writes it into `file`, in place.
    pub(crate) fn write(&self, file: &File) -> io::Result<()> {
        file.write_all_at(&self.encode(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            incarnation: 7,
            host: "alpha".to_owned(),
            process: 123,
            node: "/run/archipelago".into(),
            since: 1_764_411_303,
            heartbeat: 1_764_411_555,
            heartbeats: 17,
        }
    }

    #[test]
    fn records_are_read_as_they_are_written() {
        let bytes = record().encode();
        assert_eq!(Record::decode(&bytes), Some(record()));
        let text = std::str::from_utf8(&bytes).unwrap();
        let expected = "Owner of this pool, see docs/pool-format.md\nincarnation 7\nhost alpha\nprocess 123\n\
                        node /run/archipelago\nsince 1764411303\nheartbeat 1764411555\nheartbeats 17\nchecksum ";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn names_of_any_kind_have_room_and_break_no_line() {
        let long = Record {
            host: "\u{1f30d}\nprocess 9".repeat(400),
            node: "/\n".repeat(4000).into(),
            ..record()
        };
        let read = Record::decode(&long.encode()).unwrap();
        assert_eq!(read.process, 123);
        assert!(
            read.host.starts_with("\\u{1f30d}\\nprocess 9"),
            "{}",
            read.host
        );
    }

    #[test]
    fn what_is_torn_or_damaged_is_no_record() {
        let (old, new) = (record().encode(), Record::default().encode());
        let written = old
            .iter()
            .rposition(|byte| *byte != b' ' && *byte != b'\n')
            .unwrap();
        for len in 1..written {
            let mut torn = old;
            torn[..len].copy_from_slice(&new[..len]);
            let read = Record::decode(&torn);
            assert!(
                read.is_none() || read == Some(record()) || read == Some(Record::default()),
                "{len}"
            );
            let mut flipped = old;
            flipped[len] ^= 1;
            assert_eq!(Record::decode(&flipped), None, "{len}");
        }
        assert_eq!(Record::decode(&[b' '; LEN]), None);
        assert_eq!(Record::decode(&[]), None);
        assert_eq!(Record::decode(&[0xff; LEN]), None);
    }
}
