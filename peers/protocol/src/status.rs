//! Block status: which parts of a volume hold data and which are holes, as runs.
//!
//! A driver gets runs in a *page* of its memory ([`VolumeOp::BlockStatus`](crate::volume::VolumeOp::BlockStatus)). The mapper returns up to
//! [`MapRuns::MAX`] of them in the values of a completion ([`MapOp::Status`](crate::map::MapOp)).
//!
//! | where | a run | length | state |
//! |---|---|---|---|
//! | page | u64, little-endian | bits 9 to 63, in place: bytes, a multiple of 512 | bits 0 to 8 |
//! | answer of the mapper | u32; two in each value, the low half first | bits 2 to 31: blocks | bits 0 and 1 |
//!
//! A run of 0 ends the list; a full list has no end mark. Runs are consecutive, the first one from the beginning of the request's range.
//! Neighbours in a page differ in their state.
//!
//! There are two states, not three: the map stores no zeros. Zeros that a guest wrote as data are data; a range that was discarded, or
//! zeroed by a command, is a hole, whether or not its space was given back yet.

use crate::error::ErrorCode;
use crate::ids::{BLOCK_SIZE, SECTOR_SIZE};

/// Bytes of the longest page: 512 runs.
pub const STATUS_PAGE_MAX: u32 = 4096;
/// Bytes of a run in a page.
pub const STATUS_ENTRY_LEN: u32 = 8;
const ENTRY: usize = STATUS_ENTRY_LEN as usize;
/// Bits of an entry that are not its length.
const STATE_MASK: u64 = SECTOR_SIZE - 1;

/// The state of a part of a volume. The numbers are those of the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BlockState {
    /// Nothing is stored: it reads as zeros.
    Hole = 0,
    /// Data is stored, or may be.
    Data = 1,
}

impl BlockState {
    fn from_bits(bits: u64) -> Option<Self> {
        match bits {
            0 => Some(BlockState::Hole),
            1 => Some(BlockState::Data),
            _ => None,
        }
    }
}

/// A part of a volume in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StatusRun {
    /// Bytes: a multiple of 512, and not 0.
    pub len: u64,
    /// Their state.
    pub state: BlockState,
}

impl StatusRun {
    /// The run as an entry of a page.
    #[must_use]
    pub fn encode(self) -> [u8; ENTRY] {
        debug_assert!(self.len > 0 && self.len.is_multiple_of(SECTOR_SIZE));
        (self.len | self.state as u64).to_le_bytes()
    }

    /// The run of an entry; `None` ends the page.
    fn decode(entry: [u8; ENTRY]) -> Result<Option<Self>, ErrorCode> {
        let word = u64::from_le_bytes(entry);
        if word == 0 {
            return Ok(None);
        }
        let state = BlockState::from_bits(word & STATE_MASK).ok_or(ErrorCode::Internal)?;
        let len = word & !STATE_MASK;
        if len == 0 {
            return Err(ErrorCode::Internal);
        }
        Ok(Some(StatusRun { len, state }))
    }
}

/// The runs of a page, validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusPage<'a> {
    entries: &'a [u8],
    covered: u64,
}

impl<'a> StatusPage<'a> {
    /// The page in `bytes`, a private copy, which answers a request of `asked` bytes.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`]: an unknown state, an impossible length, more than was requested, or no run at all.
    pub fn decode(bytes: &'a [u8], asked: u64) -> Result<Self, ErrorCode> {
        let (mut covered, mut used) = (0_u64, 0);
        for entry in bytes.as_chunks::<ENTRY>().0 {
            let Some(run) = StatusRun::decode(*entry)? else {
                break;
            };
            covered = covered.checked_add(run.len).ok_or(ErrorCode::Internal)?;
            used += ENTRY;
        }
        if covered == 0 || covered > asked {
            return Err(ErrorCode::Internal);
        }
        Ok(StatusPage {
            entries: &bytes[..used],
            covered,
        })
    }

    /// Bytes that the runs cover together: at least 512. For the rest a further request is sent behind them.
    #[must_use]
    pub fn covered(&self) -> u64 {
        self.covered
    }

    /// The runs, in the order of the volume.
    pub fn runs(&self) -> impl Iterator<Item = StatusRun> + 'a {
        let entries = self.entries.as_chunks::<ENTRY>().0.iter();
        entries.map_while(|entry| StatusRun::decode(*entry).ok().flatten())
    }
}

/// Runs of whole blocks, in an answer of the mapper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MapRuns {
    words: [u32; MapRuns::MAX],
    len: u32,
}

impl MapRuns {
    /// Most runs of an answer.
    pub const MAX: usize = 4;
    /// Most blocks of a run: 2^30 - 1, which is 4 TiB. The rest of a longer one takes another run of the same state.
    pub const BLOCKS_MAX: u64 = (1 << 30) - 1;

    /// Adds a run of `blocks` blocks, at least one, behind the others. Returns whether there was room for all of them; otherwise as many as
    /// fit were added.
    pub fn push(&mut self, state: BlockState, mut blocks: u64) -> bool {
        while blocks > 0 {
            let Some(word) = self.words.get_mut(self.len as usize) else {
                return false;
            };
            let now = blocks.min(Self::BLOCKS_MAX);
            *word = low_half(now) << 2 | state as u32;
            self.len += 1;
            blocks -= now;
        }
        true
    }

    /// Number of runs.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The runs, in the order of the volume.
    pub fn iter(&self) -> impl Iterator<Item = StatusRun> {
        self.words[..self.len as usize]
            .iter()
            .map(|word| StatusRun {
                len: u64::from(word >> 2) * BLOCK_SIZE,
                // Every word was made by `push` or validated by `from_values`.
                state: BlockState::from_bits(u64::from(word & 3)).unwrap_or(BlockState::Data),
            })
    }

    /// The runs as the values of a completion.
    #[must_use]
    pub fn to_values(&self) -> [u64; 2] {
        let [a, b, c, d] = self.words.map(u64::from);
        [a | b << 32, c | d << 32]
    }

    /// The runs in the values of a completion.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`]: an unknown state, a run of no blocks, a run behind the end, or no run at all.
    pub fn from_values(values: [u64; 2]) -> Result<Self, ErrorCode> {
        let [first, second] = values;
        let words = [first, first >> 32, second, second >> 32].map(low_half);
        let is_run = |word: &u32| word >> 2 > 0 && word & 3 <= BlockState::Data as u32;
        let mut len = 0;
        for (index, word) in (0..).zip(&words) {
            if is_run(word) && len == index {
                len += 1;
            } else if *word != 0 {
                return Err(ErrorCode::Internal);
            }
        }
        if len == 0 {
            return Err(ErrorCode::Internal);
        }
        Ok(MapRuns { words, len })
    }
}

/// The low 32 bits of `word`.
fn low_half(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(len: u64, state: BlockState) -> StatusRun {
        StatusRun { len, state }
    }

    #[test]
    fn a_page_holds_runs_up_to_its_end() {
        let runs = [
            run(512, BlockState::Data),
            run(1 << 50, BlockState::Hole),
            run(4096, BlockState::Data),
        ];
        let mut bytes: Vec<u8> = runs.iter().flat_map(|run| run.encode()).collect();
        assert_eq!(bytes[..8], [1, 2, 0, 0, 0, 0, 0, 0]);
        let covered = (1 << 50) + 4608;
        let page = StatusPage::decode(&bytes, covered).unwrap();
        assert_eq!((page.covered(), page.runs().count()), (covered, 3));
        bytes.extend([0; 8]);
        bytes.extend([0xff; 8]);
        let page = StatusPage::decode(&bytes, u64::MAX).unwrap();
        assert_eq!(page.runs().collect::<Vec<_>>(), runs);
    }

    #[test]
    fn a_page_that_cannot_be_is_refused() {
        let page = |words: &[u64], asked| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            StatusPage::decode(&bytes, asked).map(|page| page.covered())
        };
        assert_eq!(page(&[4096, 513], 4608), Ok(4608));
        for (words, why) in [
            (&[][..], "no page"),
            (&[0], "no run"),
            (&[1], "no length"),
            (&[514], "an unknown state"),
            (&[512 + 256], "no multiple of 512"),
            (&[4096, 512, 512], "more than was asked for"),
            (&[!511, 512], "more than can be"),
        ] {
            assert_eq!(page(words, 4608), Err(ErrorCode::Internal), "{why}");
        }
    }

    #[test]
    fn the_mapper_answers_runs_in_two_values() {
        let mut runs = MapRuns::default();
        assert!(runs.is_empty() && runs.push(BlockState::Data, 1));
        assert!(runs.push(BlockState::Hole, MapRuns::BLOCKS_MAX + 1));
        assert_eq!(runs.len(), 3);
        let blocks: Vec<_> = runs.iter().map(|run| run.len / BLOCK_SIZE).collect();
        assert_eq!(blocks, [1, MapRuns::BLOCKS_MAX, 1]);
        assert_eq!(runs.to_values(), [0xffff_fffc_0000_0005, 4]);
        assert_eq!(MapRuns::from_values(runs.to_values()), Ok(runs));
        assert!(runs.push(BlockState::Data, 2) && !runs.push(BlockState::Hole, 1));
        assert_eq!(MapRuns::from_values(runs.to_values()), Ok(runs));
    }

    #[test]
    fn an_answer_that_cannot_be_is_refused() {
        for (values, why) in [
            ([0, 0], "no run"),
            ([1, 0], "no length"),
            ([6, 0], "an unknown state"),
            ([4, 4], "a run behind the end"),
        ] {
            assert_eq!(
                MapRuns::from_values(values),
                Err(ErrorCode::Internal),
                "{why}"
            );
        }
    }
}
