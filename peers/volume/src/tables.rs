//! What all volumes of a peer share: ports, tables, memory. A plain structure: each field is a part with its own rules.

use std::collections::VecDeque;

use xseg::ClientPort;

use crate::cells::Cells;
use crate::control_event::ControlEvent;
use crate::copies::Areas;
use crate::limits::{PIECES_MAX, REQUESTS_MAX};
use crate::memory::GuestMemory;
use crate::piece::Piece;
use crate::ports::Ports;
use crate::ready::Ready;
use crate::request::Request;
use crate::slab::Slab;
use crate::space::SpaceTurns;

/// Counts since the peer was made, besides those that the parts keep.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    pub(crate) failed: u64,
    pub(crate) flush_rounds: u64,
    pub(crate) merges: u64,
    pub(crate) sync_failures: u64,
    pub(crate) space_waits: u64,
}

/// Everything that a volume uses but does not own.
#[derive(Debug)]
pub(crate) struct Tables<M, B> {
    pub(crate) ports: Ports<M, B>,
    pub(crate) requests: Slab<Request>,
    pub(crate) pieces: Slab<Piece>,
    pub(crate) memory: GuestMemory,
    pub(crate) cells: Cells,
    pub(crate) areas: Areas,
    pub(crate) ready: Ready,
    pub(crate) space_turns: SpaceTurns,
    pub(crate) control_events: VecDeque<ControlEvent>,
    pub(crate) counters: Counters,
    /// Number of requests submitted so far: the sequence number of the next one.
    pub(crate) submitted: u64,
    /// For lists of slots that are used within one call.
    pub(crate) scratch: Vec<u32>,
}

impl<M: ClientPort, B: ClientPort> Tables<M, B> {
    pub(crate) fn new(ports: Ports<M, B>) -> Self {
        Tables {
            requests: Slab::new(REQUESTS_MAX),
            pieces: Slab::new(PIECES_MAX),
            memory: GuestMemory::new(REQUESTS_MAX),
            cells: Cells::new(ports.object_arena().len()),
            areas: Areas::new(ports.map_arena().len()),
            ready: Ready::default(),
            space_turns: SpaceTurns::default(),
            control_events: VecDeque::new(),
            counters: Counters::default(),
            submitted: 0,
            scratch: Vec::new(),
            ports,
        }
    }
}
