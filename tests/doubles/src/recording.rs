//! A backend that writes down what is asked of it and when it was answered: what a power cut at any moment is made of.
//!
//! Invariants
//! - Only requests that change something, and syncs, are written down. A reply is written down before it is given, a
//!   request before it is started: so the order of the entries is one that the client cannot distinguish from the true one.
//! - The bytes of a write are those that the memory held when it was started.
//!
//! An entry is eight little-endian words, and the data of a write or swap behind them:
//!
//! | word | started | answered |
//! |---|---|---|
//! | 0 | 1 | 2 |
//! | 1 | ticket | ticket |
//! | 2 | operation, flags << 8, kind << 16, length << 32 | 1: done, 0: failed |
//! | 3, 4 | lineage: high, low | 0 |
//! | 5 | number of the object | 0 |
//! | 6 | offset | 0 |
//! | 7 | object size: log2, token << 8 | 0 |

use std::fmt;
use std::io::{ErrorKind, Read, Result, Write};
use std::time::Duration;

use archipelago_blocker::Backend;
use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::control::{PoolReport, Wait};
use archipelago_protocol::handle::{FencingToken, HandleAccess, OpenObject};
use archipelago_protocol::object::{OBJECT_ID_LEN, ObjectId, ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::{ErrorCode, Generation, ObjectSize};
use xseg::{Span, Submission};

const WORDS: usize = 8;
const STARTED: u64 = 1;
const ANSWERED: u64 = 2;

/// An entry of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    /// A request was started.
    Started {
        /// Names it until it is answered.
        ticket: u64,
        /// What is asked; where the data was in memory is not recorded.
        request: ObjectRequest,
        /// What a write or swap carries, else nothing.
        data: Vec<u8>,
    },
    /// It was answered.
    Answered {
        /// Which one.
        ticket: u64,
        /// Whether with success.
        done: bool,
    },
}

/// Whether a request is worth an entry.
fn counts(op: ObjectOp) -> bool {
    use ObjectOp::{Capabilities, List, Read, ReadSwapped, Stat, StatPool};
    let changes = !matches!(op, List | Read | ReadSwapped | Stat | StatPool);
    changes && op != Capabilities
}

fn carries_data(op: ObjectOp) -> bool {
    matches!(
        op,
        ObjectOp::Write | ObjectOp::Append | ObjectOp::CompareAndSwap
    )
}

fn put(out: &mut impl Write, words: [u64; WORDS], data: &[u8]) -> Result<()> {
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    bytes.extend_from_slice(data);
    // In one piece: a process that is killed leaves whole entries, and perhaps one that is cut short at the end.
    out.write_all(&bytes)
}

impl Recorded {
    /// Writes the entry.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, out: &mut impl Write) -> Result<()> {
        match self {
            Recorded::Started {
                ticket,
                request,
                data,
            } => {
                let id = request.id;
                let what = u64::from(request.op as u8)
                    | u64::from(request.flags) << 8
                    | u64::from(id.kind as u8) << 16
                    | u64::from(request.len) << 32;
                let [high, low] = id.lineage.to_words();
                let size_and_token = u64::from(request.object_size.log2()) | request.token.0 << 8;
                let words = [
                    STARTED,
                    *ticket,
                    what,
                    high,
                    low,
                    id.number,
                    request.offset,
                    size_and_token,
                ];
                put(out, words, data)
            }
            Recorded::Answered { ticket, done } => put(
                out,
                [ANSWERED, *ticket, u64::from(*done), 0, 0, 0, 0, 0],
                &[],
            ),
        }
    }

    /// Reads the next entry; `None` at the end, also if the last one is cut short.
    ///
    /// # Errors
    /// If it cannot be read, or is none.
    pub fn read(from: &mut impl Read) -> Result<Option<Self>> {
        let mut bytes = [0; WORDS * 8];
        if !fill(from, &mut bytes)? {
            return Ok(None);
        }
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let [
            kind,
            ticket,
            what,
            high,
            low,
            number,
            offset,
            size_and_token,
        ] = words;
        match kind {
            ANSWERED => Ok(Some(Recorded::Answered {
                ticket,
                done: what == 1,
            })),
            STARTED => {
                let [op, flags, kind, _, len @ ..] = what.to_le_bytes();
                let request = object([high, low, number], kind, size_and_token)
                    .and_then(|object| {
                        let entry = Submission {
                            op,
                            flags,
                            len: u32::from_le_bytes(len),
                            offset,
                            ..Submission::default()
                        };
                        let decoded = ObjectRequest::decode(&entry, |_, _| Ok(&object))?;
                        Ok(ObjectRequest {
                            id: object.id,
                            ..decoded
                        })
                    })
                    .map_err(|code| std::io::Error::other(format!("no request: {code:?}")))?;
                let mut data = Vec::new();
                if carries_data(request.op) {
                    data.resize(request.len as usize, 0);
                    if !fill(from, &mut data)? {
                        return Ok(None);
                    }
                }
                Ok(Some(Recorded::Started {
                    ticket,
                    request,
                    data,
                }))
            }
            _ => Err(std::io::Error::other(format!("no entry of kind {kind}"))),
        }
    }
}

/// The object of an entry.
fn object(
    id: [u64; 3],
    kind: u8,
    size_and_token: u64,
) -> std::result::Result<OpenObject, ErrorCode> {
    let [high, low, number] = id;
    let mut bytes = [0; OBJECT_ID_LEN];
    for (word, bytes) in [high, low, number, kind.into()]
        .into_iter()
        .zip(bytes.as_chunks_mut::<8>().0)
    {
        *bytes = word.to_le_bytes();
    }
    let id = ObjectId::from_bytes(&bytes).ok_or(ErrorCode::Invalid)?;
    let [log2, ..] = size_and_token.to_le_bytes();
    let request = ObjectRequest {
        object_size: ObjectSize::from_log2(log2).ok_or(ErrorCode::Invalid)?,
        token: Generation(size_and_token >> 8 & u64::from(u32::MAX)),
        ..ObjectRequest::new(ObjectOp::Read, id)
    };
    Ok(OpenObject::of(&request, HandleAccess::Metadata))
}

/// Whether `bytes` could be filled.
fn fill(from: &mut impl Read, bytes: &mut [u8]) -> Result<bool> {
    match from.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Another backend, written down.
pub struct Recording<B, W> {
    backend: B,
    out: W,
    /// Tickets of requests that were written down.
    open: std::collections::BTreeSet<u64>,
    entries: u64,
}

impl<B: Backend, W: Write> Recording<B, W> {
    /// Writes down what is asked of `backend`.
    pub fn new(backend: B, out: W) -> Self {
        Recording {
            backend,
            out,
            open: std::collections::BTreeSet::new(),
            entries: 0,
        }
    }

    fn note(&mut self, entry: &Recorded) {
        self.entries += 1;
        let written = entry.write(&mut self.out);
        written.expect("a recording with a gap is worth nothing");
    }
}

impl<B: Backend, W: Write> Backend for Recording<B, W> {
    fn name(&self) -> &str {
        self.backend.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    fn look(&mut self, now: Duration) {
        self.backend.look(now);
    }

    fn waits(&self) -> Vec<Wait> {
        self.backend.waits()
    }

    fn pool_report(&self) -> Option<PoolReport> {
        self.backend.pool_report()
    }

    fn is_fenced(&self, token: &FencingToken) -> bool {
        self.backend.is_fenced(token)
    }

    fn failed_pool_syncs_elsewhere(&self) -> u64 {
        self.backend.failed_pool_syncs_elsewhere()
    }

    fn written_before(&mut self, id: ObjectId) {
        self.backend.written_before(id);
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = self.backend.counters();
        counters.push(("recorded", self.entries));
        counters
    }

    fn start(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span]) {
        if counts(request.op) {
            let mut data = Vec::new();
            if carries_data(request.op) {
                for span in memory {
                    let start = data.len();
                    data.resize(start + span.len(), 0);
                    span.read(&mut data[start..]);
                }
            }
            self.open.insert(ticket);
            self.note(&Recorded::Started {
                ticket,
                request: *request,
                data,
            });
        }
        self.backend.start(ticket, request, memory);
    }

    fn poll(&mut self) -> Option<(u64, ObjectReply)> {
        let (ticket, reply) = self.backend.poll()?;
        if self.open.remove(&ticket) {
            let done = reply.result.is_ok();
            self.note(&Recorded::Answered { ticket, done });
        }
        Some((ticket, reply))
    }
}

impl<B, W> fmt::Debug for Recording<B, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording")
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::ids::{Epoch, Lineage};
    use archipelago_protocol::object::FLAG_DURABLE;
    use xseg::Region;

    use super::*;
    use crate::MemoryBackend;

    #[test]
    fn what_changes_something_is_read_back_in_order() {
        let region = Region::anonymous(8192).unwrap();
        region.write(0, &[7; 4096]).unwrap();
        let id = ObjectId::data(Lineage(9 << 64 | 3), Epoch(2));
        let write = ObjectRequest {
            flags: FLAG_DURABLE,
            offset: 1 << 40,
            len: 4096,
            ..ObjectRequest::new(ObjectOp::Write, id)
        };
        let read = ObjectRequest {
            op: ObjectOp::Read,
            ..write
        };
        let sync = ObjectRequest::new(ObjectOp::SyncPool, id);
        let mut file = Vec::new();
        let mut backend = Recording::new(MemoryBackend::new(), &mut file);
        let span = region.span(0, 4096).unwrap();
        backend.start(5, &write, std::slice::from_ref(&span));
        assert!(backend.poll().is_some());
        backend.start(6, &read, &[span]);
        assert!(backend.poll().is_some());
        backend.start(7, &sync, &[]);
        assert!(backend.poll().is_some());

        let mut from = &file[..];
        let entries: Vec<_> = std::iter::from_fn(|| Recorded::read(&mut from).unwrap()).collect();
        let started = |ticket, request, data| Recorded::Started {
            ticket,
            request,
            data,
        };
        let answered = |ticket| Recorded::Answered { ticket, done: true };
        assert_eq!(
            entries,
            [
                started(5, write, vec![7; 4096]),
                answered(5),
                started(7, sync, Vec::new()),
                answered(7)
            ]
        );
        // Cut short, as by a kill.
        let mut from = &file[..file.len() - 70];
        assert_eq!(
            std::iter::from_fn(|| Recorded::read(&mut from).unwrap()).count(),
            2
        );
    }
}
