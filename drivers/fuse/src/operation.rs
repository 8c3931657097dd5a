//! A request for an open file while it is carried out: its pieces, its data, its reply.
//!
//! A write of a part of a sector has two steps: a read of the sector and a write of the whole sector. No other write may come in between,
//! so a request with such a part is exclusive among the requests that change the file.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::ids::SECTOR_SIZE;
use archipelago_protocol::status::{BlockState, StatusRun};
use archipelago_segment::{Buffer, Request};

use crate::job::{Io, Reply, Seek};
use crate::pieces::{Piece, Pieces};

/// Most bytes of a request without data: the limit of one ring entry, in whole MiB.
const BARE_LEN_MAX: u32 = 1 << 30;
/// A sector of zeros.
const ZEROS: [u8; 512] = [0; 512];
const _: () = assert!(ZEROS.len() as u64 == SECTOR_SIZE);

/// A step of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The one step of a piece.
    Only,
    /// Of a partly written sector: reads it.
    ReadSector,
    /// Of a partly written sector: writes it.
    WriteSector,
}

enum Work {
    Read {
        offset: u64,
        data: Vec<u8>,
        reply: Reply<Vec<u8>>,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
        reply: Reply<u32>,
    },
    Zero {
        keep_space: bool,
        reply: Reply<()>,
    },
    Flush {
        pending: bool,
        reply: Reply<()>,
    },
    Seek(Search),
}

/// A seek: reads the block status page by page.
struct Search {
    /// The result is not before this offset.
    offset: u64,
    what: Seek,
    /// Bytes of the file.
    size: u64,
    /// Offset of the next status request; `None`: in flight, or found.
    next: Option<u64>,
    found: Option<u64>,
    reply: Reply<u64>,
}

impl Search {
    /// Searches the runs from `at` on.
    fn look(&mut self, at: u64, runs: &[StatusRun]) {
        let wanted = match self.what {
            Seek::Data => BlockState::Data,
            Seek::Hole => BlockState::Hole,
        };
        let mut at = at;
        for run in runs {
            if run.state == wanted {
                self.found = Some(at.max(self.offset));
                return;
            }
            at += run.len;
        }
        if at < self.size {
            self.next = Some(at);
        } else if self.what == Seek::Hole {
            // The end of a file is a hole.
            self.found = Some(self.size);
        }
    }
}

/// A request that has begun.
pub(crate) struct Operation {
    work: Work,
    /// The pieces that have not begun.
    pieces: Pieces,
    in_flight: usize,
    failure: Option<ErrorCode>,
}

impl Operation {
    /// Begins the operation for `io` on a file of `size` bytes with buffers of `buffer_len`. `None`: answered already.
    pub(crate) fn begin(io: Io, size: u64, buffer_len: u32) -> Option<Operation> {
        let room = |offset: u64, len: u64| len.min(size.saturating_sub(offset));
        let none = Pieces::of(0, 0, buffer_len);
        let (work, pieces) = match io {
            Io::Read { offset, len, reply } => {
                let len = room(offset, len.into());
                if len == 0 {
                    reply(Ok(Vec::new()));
                    return None;
                }
                let data = vec![0; usize::try_from(len).unwrap_or_default()];
                let pieces = Pieces::of(offset, len, buffer_len);
                (
                    Work::Read {
                        offset,
                        data,
                        reply,
                    },
                    pieces,
                )
            }
            Io::Write {
                offset,
                mut data,
                reply,
            } => {
                let len = room(offset, data.len() as u64);
                if len == 0 {
                    // As at the end of a block device.
                    reply(if data.is_empty() {
                        Ok(0)
                    } else {
                        Err(ErrorCode::NoSpace)
                    });
                    return None;
                }
                data.truncate(usize::try_from(len).unwrap_or_default());
                let pieces = Pieces::of(offset, len, buffer_len);
                (
                    Work::Write {
                        offset,
                        data,
                        reply,
                    },
                    pieces,
                )
            }
            Io::Zero {
                offset,
                len,
                keep_space,
                reply,
            } => {
                let pieces = Pieces::of(offset, room(offset, len), BARE_LEN_MAX);
                (Work::Zero { keep_space, reply }, pieces)
            }
            Io::Flush { reply } => (
                Work::Flush {
                    pending: true,
                    reply,
                },
                none,
            ),
            Io::Seek {
                offset,
                what,
                reply,
            } => {
                if offset >= size {
                    reply(Err(ErrorCode::NotFound));
                    return None;
                }
                let search = Search {
                    offset,
                    what,
                    size,
                    next: Some(offset / SECTOR_SIZE * SECTOR_SIZE),
                    found: None,
                    reply,
                };
                (Work::Seek(search), none)
            }
        };
        Some(Operation {
            work,
            pieces,
            in_flight: 0,
            failure: None,
        })
    }

    /// `Some` if `io` changes the file: whether no other request may change the file meanwhile.
    pub(crate) fn would_change(io: &Io) -> Option<bool> {
        let (offset, len) = match io {
            Io::Write { offset, data, .. } => (*offset, data.len() as u64),
            Io::Zero { offset, len, .. } => (*offset, *len),
            Io::Read { .. } | Io::Flush { .. } | Io::Seek { .. } => return None,
        };
        Some(Pieces::of(offset, len, BARE_LEN_MAX).cut_sectors())
    }

    /// Whether it changes the file.
    pub(crate) fn changes(&self) -> bool {
        matches!(self.work, Work::Write { .. } | Work::Zero { .. })
    }

    /// Whether no other request may change the file meanwhile.
    pub(crate) fn is_exclusive(&self) -> bool {
        self.changes() && self.pieces.cut_sectors()
    }

    /// The piece to begin next, if there is one. It stays the next until [`Operation::began`].
    pub(crate) fn next_piece(&self) -> Option<Piece> {
        if self.failure.is_some() {
            return None;
        }
        match &self.work {
            Work::Flush { pending, .. } => pending.then_some(Piece::Flush),
            Work::Seek(Search { next, size, .. }) => next.map(|offset| Piece::Status {
                offset,
                range: size - offset,
            }),
            _ => { self.pieces }.next(),
        }
    }

    /// Records that its next piece is in flight.
    pub(crate) fn began(&mut self) {
        match &mut self.work {
            Work::Flush { pending, .. } => *pending = false,
            Work::Seek(search) => search.next = None,
            _ => {}
        }
        self.pieces.next();
        self.in_flight += 1;
    }

    /// Whether `piece` moves data.
    pub(crate) fn needs_buffer(&self, piece: Piece) -> bool {
        match piece {
            Piece::Flush => false,
            Piece::Part { .. } | Piece::Status { .. } => true,
            Piece::Whole { .. } => !matches!(self.work, Work::Zero { .. }),
        }
    }

    /// The first request for `piece`, with `buffer` if it needs one.
    pub(crate) fn request(&self, piece: Piece, buffer: Option<Buffer>) -> (Step, Request) {
        match (piece, buffer) {
            (Piece::Whole { offset, len }, Some(mut buffer)) => {
                let request = match &self.work {
                    Work::Write {
                        offset: begin,
                        data,
                        ..
                    } => {
                        buffer.write(0, part(data, offset - begin, len));
                        Request::Write {
                            offset,
                            len,
                            buffer,
                            durable: false,
                        }
                    }
                    _ => Request::Read {
                        offset,
                        len,
                        buffer,
                    },
                };
                (Step::Only, request)
            }
            (Piece::Whole { offset, len }, None) => {
                let keep_space = matches!(
                    self.work,
                    Work::Zero {
                        keep_space: true,
                        ..
                    }
                );
                let request = Request::WriteZeroes {
                    offset,
                    len,
                    keep_space,
                    durable: false,
                };
                (Step::Only, request)
            }
            (Piece::Part { sector, .. }, Some(buffer)) => {
                let step = if self.changes() {
                    Step::ReadSector
                } else {
                    Step::Only
                };
                let request = Request::Read {
                    offset: sector,
                    len: sector_len(),
                    buffer,
                };
                (step, request)
            }
            (Piece::Status { offset, range }, Some(buffer)) => {
                let request = Request::Status {
                    offset,
                    range,
                    buffer,
                };
                (Step::Only, request)
            }
            (Piece::Part { .. } | Piece::Status { .. } | Piece::Flush, _) => {
                (Step::Only, Request::Flush)
            }
        }
    }

    /// Records that a step of `piece` has succeeded, with `buffer`. Returns the request of its next step, if there is one.
    pub(crate) fn stepped(
        &mut self,
        piece: Piece,
        step: Step,
        buffer: Option<Buffer>,
    ) -> Option<Request> {
        let mut buffer = buffer?;
        match (&mut self.work, piece) {
            (
                Work::Read {
                    offset: begin,
                    data,
                    ..
                },
                Piece::Whole { offset, len },
            ) => buffer.read(0, part_mut(data, offset - *begin, len)),
            (Work::Read { offset, data, .. }, Piece::Part { begin, len, .. }) => {
                let into = part_mut(data, piece.offset() - *offset, len);
                buffer.read(begin as usize, into);
            }
            (work, Piece::Part { sector, begin, len }) if step == Step::ReadSector => {
                match work {
                    Work::Write { offset, data, .. } => {
                        buffer.write(begin as usize, part(data, piece.offset() - *offset, len));
                    }
                    _ => buffer.write(begin as usize, &ZEROS[..len as usize]),
                }
                return Some(Request::Write {
                    offset: sector,
                    len: sector_len(),
                    buffer,
                    durable: false,
                });
            }
            (Work::Seek(search), Piece::Status { offset, range }) => match buffer.status(range) {
                Ok(runs) => search.look(offset, &runs),
                Err(code) => self.give_up(code),
            },
            _ => {}
        }
        None
    }

    /// Records that a piece has ended.
    pub(crate) fn ended(&mut self, result: Result<(), ErrorCode>) {
        self.in_flight -= 1;
        if let Err(code) = result {
            self.failure.get_or_insert(code);
        }
    }

    /// Records that it cannot go on.
    pub(crate) fn give_up(&mut self, code: ErrorCode) {
        self.failure.get_or_insert(code);
    }

    /// Whether it is finished.
    pub(crate) fn is_done(&self) -> bool {
        self.in_flight == 0 && self.next_piece().is_none()
    }

    /// Why it failed, so far.
    pub(crate) fn failure(&self) -> Option<ErrorCode> {
        self.failure
    }

    /// Answers it.
    pub(crate) fn answer(self) {
        let result = self.failure.map_or(Ok(()), Err);
        match self.work {
            Work::Read { data, reply, .. } => reply(result.map(|()| data)),
            Work::Write { data, reply, .. } => {
                let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
                reply(result.map(|()| len));
            }
            Work::Seek(Search { found, reply, .. }) => {
                reply(result.and_then(|()| found.ok_or(ErrorCode::NotFound)));
            }
            Work::Zero { reply, .. } | Work::Flush { reply, .. } => reply(result),
        }
    }
}

fn sector_len() -> u32 {
    u32::try_from(SECTOR_SIZE).unwrap_or(u32::MAX)
}

/// `len` bytes at `at`; pieces always lie inside.
fn part(data: &[u8], at: u64, len: u32) -> &[u8] {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    &data[at..at + len as usize]
}

fn part_mut(data: &mut [u8], at: u64, len: u32) -> &mut [u8] {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    &mut data[at..at + len as usize]
}
