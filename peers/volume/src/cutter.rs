//! Divides requests into pieces: reads and writes at object boundaries; discards and write zeroes into the partial blocks at the ends and
//! runs of whole blocks; a status is not divided.
//!
//! All pieces of a request are in flight together. Without room for a piece, the cutting pauses.

use archipelago_protocol::map::LOCATE_LEN_MAX;
use archipelago_protocol::volume::VolumeOp;
use archipelago_protocol::{BLOCK_SIZE, ObjectSize};

use crate::blocks::{block_end, block_start};
use crate::piece::Work;
use crate::request::{Phase, Request};
use crate::slab::{Queue, Slab};

/// What the cutter does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// All requests are cut.
    Nothing,
    /// Make a piece of `request`; [`Cutter::made`] follows.
    Piece {
        request: u32,
        work: Work,
        offset: u64,
        len: u64,
    },
    /// All pieces of this request have been made.
    Finished(u32),
}

/// The requests of a volume that are not completely cut, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Cutter {
    queue: Queue,
}

impl Cutter {
    /// Adds request `r`, to be cut from its beginning after the others.
    pub(crate) fn push(&mut self, requests: &mut Slab<Request>, r: u32) {
        let request = &mut requests[r];
        request.cursor = request.offset;
        request.pieces = 0;
        request.result = Ok(());
        request.phase = Phase::Cutting;
        self.queue.push(requests, r);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Removes all requests. The caller starts them again, or answers them.
    pub(crate) fn clear(&mut self) {
        self.queue = Queue::default();
    }

    /// The next piece of the oldest request.
    pub(crate) fn next(&mut self, requests: &mut Slab<Request>, object_size: ObjectSize) -> Cut {
        let Some(r) = self.queue.front() else {
            return Cut::Nothing;
        };
        let request = &mut requests[r];
        if request.cursor < request.end() && request.result.is_ok() {
            let (work, len) = next_piece(request, object_size);
            return Cut::Piece {
                request: r,
                work,
                offset: request.cursor,
                len,
            };
        }
        request.phase = Phase::Running;
        self.queue.pop(requests);
        Cut::Finished(r)
    }

    /// A piece of `len` bytes was made.
    pub(crate) fn made(&mut self, requests: &mut Slab<Request>, len: u64) {
        if let Some(r) = self.queue.front() {
            requests[r].cursor += len;
        }
    }
}

/// Work and length of the piece at the request's cursor.
fn next_piece(request: &Request, object_size: ObjectSize) -> (Work, u64) {
    let (at, end) = (request.cursor, request.end());
    let object = object_size.bytes();
    let in_object = (at / object + 1) * object;
    match request.op {
        VolumeOp::Read => (Work::Read, end.min(in_object) - at),
        VolumeOp::Write { .. } => (Work::Write, end.min(in_object) - at),
        VolumeOp::BlockStatus => (Work::Status, end - at),
        VolumeOp::Discard | VolumeOp::WriteZeroes { .. } | VolumeOp::Flush => {
            let whole = block_start(end).min(at + LOCATE_LEN_MAX);
            if at.is_multiple_of(BLOCK_SIZE) && whole > at {
                (Work::Clear, whole - at)
            } else {
                (Work::Zeros, end.min(block_end(at + 1)) - at)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of a request over objects of 64 KiB.
    fn pieces(op: VolumeOp, offset: u64, len: u64) -> Vec<(Work, u64, u64)> {
        let mut requests = Slab::new(1);
        let request = Request::new(0, 0, 0, op, offset, len);
        let r = requests.insert(request).unwrap();
        let mut cutter = Cutter::default();
        cutter.push(&mut requests, r);
        let mut found = Vec::new();
        loop {
            let object_size = ObjectSize::from_log2(16).unwrap();
            match cutter.next(&mut requests, object_size) {
                Cut::Nothing => return found,
                Cut::Piece {
                    work, offset, len, ..
                } => {
                    found.push((work, offset, len));
                    cutter.made(&mut requests, len);
                }
                Cut::Finished(finished) => assert_eq!(finished, r),
            }
        }
    }

    #[test]
    fn data_is_cut_at_objects_and_zeros_at_blocks_and_a_status_nowhere() {
        let kib = |n: u64| n << 10;
        assert_eq!(
            pieces(VolumeOp::Read, kib(60), kib(80)),
            [
                (Work::Read, kib(60), kib(4)),
                (Work::Read, kib(64), kib(64)),
                (Work::Read, kib(128), kib(12)),
            ]
        );
        assert_eq!(
            pieces(VolumeOp::Discard, 512, kib(12)),
            [
                (Work::Zeros, 512, 3584),
                (Work::Clear, kib(4), kib(8)),
                (Work::Zeros, kib(12), 512),
            ]
        );
        assert_eq!(
            pieces(VolumeOp::Discard, 512, 512),
            [(Work::Zeros, 512, 512)]
        );
        assert_eq!(pieces(VolumeOp::Read, kib(4), 0), []);
        assert_eq!(
            pieces(VolumeOp::BlockStatus, 512, 1 << 50),
            [(Work::Status, 512, 1 << 50)]
        );
    }
}
