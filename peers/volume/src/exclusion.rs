//! Which pieces may be in flight together.
//!
//! - A merge reads a block, changes a part and writes the whole: a write of another part that completes in between would
//!   be undone, and so would a clear. So a merge is the only writer of its block: it starts when no other write or clear
//!   that touches the block is in flight, and those that come later wait until it is reported.
//! - A write into a block that is not owned lands first and is reported later. If the block were cleared in between, the
//!   report would bring back whatever lies at that place by then: perhaps another write, answered and cleared long ago.
//!   So a clear starts when no write that touches its blocks is in flight, and writes that come later wait for it.
//! - Writes do not exclude one another, nor do clears: they change only what they were asked to change, and what lies at
//!   a place that is reported was written by one of those in flight, or by a later one.
//! - A piece that finds that it must merge lets go of its range before it waits, and a clear holds nothing while it
//!   waits, so no two wait for each other.
//!
//! Reads exclude nobody.

use xseg::ClientPort;

use crate::model::{MERGES_MAX, Merge, Piece, Step, Work, block_start};
use crate::peer::VolumePeer;

impl<M: ClientPort, B: ClientPort> VolumePeer<M, B> {
    /// Begins the run that piece `p` describes.
    pub(crate) fn start(&mut self, p: u32) {
        let Piece {
            volume: v, work, ..
        } = self.pieces[p];
        if work == Work::Read {
            return self.ask_map(p, Step::Probe);
        }
        let volume = &mut self.volumes[v];
        let piece = &mut self.pieces[p];
        if work == Work::Clear && !piece.clearing {
            piece.clearing = true;
            volume.clears.push(p);
        }
        let piece = &self.pieces[p];
        let in_the_way = |other: &u32| piece.meets(&self.pieces[*other]);
        let excluded = volume.merges.iter().any(|merge| piece.touches(merge.block))
            || match work {
                Work::Clear => volume
                    .active
                    .iter()
                    .any(|other| self.pieces[*other].work != Work::Clear && in_the_way(other)),
                _ => volume.clears.iter().any(in_the_way),
            };
        let piece = &mut self.pieces[p];
        if excluded {
            piece.step = Step::Acquire;
            volume.blocked.push(&mut self.pieces, p);
            return;
        }
        piece.active_at = Some(volume.active.len());
        volume.active.push(p);
        let step = match work {
            Work::Zeros => Step::Probe,
            Work::Clear => Step::Clear,
            Work::Read | Work::Write => Step::Claim,
        };
        self.ask_map(p, step);
    }

    /// Lets go of the range and waits to be the only writer of the block; the place is asked for again then.
    pub(crate) fn ask_exclusive(&mut self, p: u32) {
        let v = self.pieces[p].volume;
        self.leave_active(p);
        let volume = &mut self.volumes[v];
        let piece = &mut self.pieces[p];
        piece.first = false;
        if volume.merges.len() < MERGES_MAX {
            piece.merging = true;
            piece.step = Step::Exclusive;
            volume.merges.push(Merge {
                block: block_start(piece.offset),
                piece: p,
                active: false,
            });
            return self.unblock(v);
        }
        // Waits for the end of a merge, whichever it is, and begins anew then.
        piece.step = Step::Acquire;
        self.unblock(v);
        self.volumes[v].blocked.push(&mut self.pieces, p);
    }

    /// Gives back what the run held: its range, its cell, its count.
    pub(crate) fn let_go(&mut self, p: u32) {
        let v = self.pieces[p].volume;
        if let Some(phase) = self.pieces[p].located.take() {
            self.volumes[v].located[phase] -= 1;
        }
        if let Some(cell) = self.pieces[p].cell.take() {
            self.arena.give(cell);
        }
        if let Some(slots) = self.pieces[p].copy.take() {
            self.volumes[v].flush.carry.give(slots);
        }
        if std::mem::take(&mut self.pieces[p].clearing) {
            self.volumes[v].clears.retain(|clear| *clear != p);
        }
        let was_active = self.leave_active(p);
        let was_merging = self.pieces[p].merging;
        if was_merging {
            self.pieces[p].merging = false;
            self.volumes[v].merges.retain(|merge| merge.piece != p);
        }
        if was_active || was_merging {
            self.unblock(v);
        }
    }

    /// Whether another write in flight touches a block of piece `p`.
    pub(crate) fn meets_another(&self, p: u32) -> bool {
        let piece = &self.pieces[p];
        self.volumes[piece.volume]
            .active
            .iter()
            .any(|other| *other != p && piece.meets(&self.pieces[*other]))
    }

    pub(crate) fn leave_active(&mut self, p: u32) -> bool {
        let Some(at) = self.pieces[p].active_at.take() else {
            return false;
        };
        let active = &mut self.volumes[self.pieces[p].volume].active;
        active.swap_remove(at);
        if let Some(moved) = active.get(at) {
            self.pieces[*moved].active_at = Some(at);
        }
        true
    }

    /// Lets merges begin whose block is free now, then pieces that waited for merges.
    pub(crate) fn unblock(&mut self, v: u32) {
        for index in 0..self.volumes[v].merges.len() {
            let volume = &self.volumes[v];
            let merge = volume.merges[index];
            let earlier = volume.merges[..index]
                .iter()
                .any(|other| other.block == merge.block);
            let busy = || {
                volume
                    .active
                    .iter()
                    .any(|p| self.pieces[*p].touches(merge.block))
            };
            if !merge.active && !earlier && !busy() {
                self.volumes[v].merges[index].active = true;
                self.pieces[merge.piece].exclusive = true;
                self.ask_map(merge.piece, Step::Claim);
            }
        }
        let mut blocked = std::mem::take(&mut self.volumes[v].blocked);
        while let Some(p) = blocked.pop(&mut self.pieces) {
            self.start(p);
        }
    }
}
