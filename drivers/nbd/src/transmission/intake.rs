//! A client's requests: received, validated, cut into pieces and submitted to the volume.

use archipelago_endpoint::{EndpointVolume, Service};
use archipelago_nbd_protocol::command::Command;
use archipelago_nbd_protocol::pieces::Range;
use archipelago_nbd_protocol::request::{Header, Violation};
use archipelago_nbd_protocol::requests::{Request, Requests};
use archipelago_protocol::volume::Volumes;

use super::{Expected, Phase, Step, Transmission};
use crate::cells::{CellList, NONE};
use crate::layout::{CELLS, CELLS_SHARED};
use crate::metrics::Metrics;
use crate::piece::{Piece, not_served};
use crate::receiver::Filling;
use crate::submissions::Submitted;

impl Transmission {
    pub(super) fn take_header(
        &mut self,
        service: Service,
        metrics: &Metrics,
    ) -> Result<Step, Violation> {
        if self.requests.is_full() || !self.sender.has_room() {
            return Ok(Step::Waits);
        }
        let Some(bytes) = self.receiver.header(&self.memory) else {
            return Ok(Step::NeedsInput);
        };
        if service == Service::NotYet {
            return Ok(Step::Waits);
        }
        let header = Header::decode(&bytes)?;
        self.receiver.skip_header();
        let checked = match (header.check(&self.terms), service) {
            (Ok(Command::Disconnect), _) => Ok(Command::Disconnect),
            (Ok(_), Service::Fails(why)) => Err(not_served(why)),
            (checked, _) => checked,
        };
        match checked {
            Err(errno) => {
                metrics.count_refused();
                self.replies().refuse(&header, errno);
                if let left @ 1.. = header.data_len() {
                    self.expected = Expected::Scrap { left };
                }
            }
            Ok(Command::Disconnect) => self.phase = Phase::Finishing,
            Ok(command) if command.is_noop(header.len) => {
                metrics.count(command, 0, Ok(()));
                self.replies().noop(&header);
            }
            Ok(command) => {
                // There is a free place: checked above.
                let Some(request) = self.requests.insert(command, &header) else {
                    return Ok(Step::Waits);
                };
                self.expected = match command {
                    Command::Write { .. } => Expected::Data {
                        request,
                        filling: None,
                    },
                    _ => Expected::Pieces { request },
                };
            }
        }
        Ok(Step::Taken)
    }

    /// Cuts the next piece of a request that does not write data.
    pub(super) fn cut<V: Volumes>(
        &mut self,
        index: u16,
        service: Service,
        volume: &mut EndpointVolume<V>,
        metrics: &Metrics,
    ) -> Step {
        let Some((request, whole, range)) = next_piece(&mut self.requests, index) else {
            self.expected = Expected::Header;
            return Step::Taken;
        };
        let mut cell = NONE;
        let is_read = request.command() == Command::Read;
        if is_read || matches!(request.command(), Command::BlockStatus { .. }) {
            // A read with one reply needs all its cells at the same time.
            let limit = match self.terms.structured {
                true => CELLS_SHARED,
                false => CELLS,
            };
            match self.cells.take(limit, range) {
                Some(taken) => cell = taken,
                None => return Step::Waits,
            }
            if is_read && !self.terms.structured {
                self.cells.append(whole, cell);
            }
        }
        request.cut();
        if request.next_range().is_none() {
            self.expected = Expected::Header;
        }
        let piece = Piece {
            request: index,
            cell,
            range,
        };
        self.submit(piece, service, volume, metrics);
        Step::Taken
    }

    /// Receives data of a write.
    pub(super) fn take_data<V: Volumes>(
        &mut self,
        index: u16,
        filling: Option<Filling>,
        service: Service,
        volume: &mut EndpointVolume<V>,
        metrics: &Metrics,
    ) -> Step {
        let Some((request, _, range)) = next_piece(&mut self.requests, index) else {
            self.expected = Expected::Header;
            return Step::Taken;
        };
        let mut filling = match filling {
            Some(filling) => filling,
            None => match self.cells.take(CELLS_SHARED, range) {
                Some(cell) => Filling::new(cell, range.len),
                None => return Step::Waits,
            },
        };
        self.receiver.fill(&self.memory, &mut filling);
        if !filling.is_full() {
            self.expected = Expected::Data {
                request: index,
                filling: Some(filling),
            };
            return Step::NeedsInput;
        }
        request.cut();
        self.expected = match request.next_range() {
            Some(_) => Expected::Data {
                request: index,
                filling: None,
            },
            None => Expected::Header,
        };
        let piece = Piece {
            request: index,
            cell: filling.cell,
            range,
        };
        self.submit(piece, service, volume, metrics);
        Step::Taken
    }

    /// Submits a piece to the volume, now or as soon as there is a slot.
    fn submit<V: Volumes>(
        &mut self,
        piece: Piece,
        service: Service,
        volume: &mut EndpointVolume<V>,
        metrics: &Metrics,
    ) {
        if !self.try_submit(piece, service, volume, metrics) {
            metrics.volume_refusals.add(1);
            self.submissions.wait(piece);
        }
    }

    /// Submits the waiting pieces; returns whether one was taken.
    pub(super) fn submit_waiting<V: Volumes>(
        &mut self,
        service: Service,
        volume: &mut EndpointVolume<V>,
        metrics: &Metrics,
    ) -> bool {
        let mut any = false;
        while let Some(piece) = self.submissions.next_waiting() {
            if !self.try_submit(piece, service, volume, metrics) {
                break;
            }
            self.submissions.take_waiting();
            any = true;
        }
        any
    }

    /// Submits a piece to the volume, or answers it; `false`: there is no slot.
    fn try_submit<V: Volumes>(
        &mut self,
        piece: Piece,
        service: Service,
        volume: &mut EndpointVolume<V>,
        metrics: &Metrics,
    ) -> bool {
        let operation = self.command(piece.request).and_then(Command::operation);
        let submissions = &mut self.submissions;
        match submissions.submit(piece, operation, &self.memory, service, volume) {
            Submitted::InFlight => {}
            Submitted::NoPlace => return false,
            Submitted::Failed(errno) => {
                self.piece_done(piece.request, piece.cell, Err(errno), metrics);
            }
        }
        true
    }
}

/// A request with a piece to cut, its cells if it has one reply, and the piece's range.
fn next_piece(
    requests: &mut Requests<CellList>,
    index: u16,
) -> Option<(&mut Request, &mut CellList, Range)> {
    let (request, whole) = requests.get(index)?;
    let range = request.next_range()?;
    Some((request, whole, range))
}
