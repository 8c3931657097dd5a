//! A volume peer in memory, for tests of drivers: holds requests back, refuses them, fails them and keeps a journal.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use archipelago_protocol::ids::ObjectSize;
use archipelago_protocol::status::{BlockState, STATUS_ENTRY_LEN, STATUS_PAGE_MAX, StatusRun};
use archipelago_protocol::volume::{
    OnFull, OpenMode, Segment, VolumeEvent, VolumeHandle, VolumeInfo, VolumeOp, VolumeRequest,
    Volumes,
};
use archipelago_protocol::{Error, ErrorCode, Lineage};
use xseg::{Region, RegionId, RegionTable};

/// A request as it was submitted.
#[derive(Debug, Clone)]
pub struct Submitted {
    /// What to do.
    pub op: VolumeOp,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    cookie: u64,
    segments: Vec<Segment>,
}

/// What a test sees and steers.
#[derive(Debug, Default)]
pub struct State {
    /// The volume.
    pub data: Vec<u8>,
    /// Requests in the order of their submission.
    pub journal: Vec<Submitted>,
    /// Requests wait for [`State::release`].
    pub hold: bool,
    /// Requests that wait.
    pub held: Vec<Submitted>,
    /// Requests taken before the next is refused with Unavailable; `None`: any number.
    pub credits: Option<usize>,
    /// Every request fails with this.
    pub fail: Option<ErrorCode>,
    /// Writes wait for room, until [`State::make_room`].
    pub full: bool,
    /// Writes that wait for room.
    pub parked: Vec<Submitted>,
    /// Opens fail with this.
    pub fail_open: Option<ErrorCode>,
    /// Closes fail with this.
    pub fail_close: Option<ErrorCode>,
    /// Policies for a full pool, in the order in which they were set.
    pub policies: Vec<OnFull>,
    /// How often the volume was opened and closed.
    pub opens: usize,
    /// As `opens`.
    pub closes: usize,
    /// Whether it is open.
    pub open: bool,
    regions: RegionTable,
    region_count: usize,
    next_region: u32,
    events: VecDeque<VolumeEvent>,
}

impl State {
    /// Completes the held request at `index`.
    pub fn release(&mut self, index: usize) {
        let request = self.held.remove(index);
        self.run(&request);
    }

    /// There is room from now on: what waited for it is done.
    pub fn make_room(&mut self) {
        self.full = false;
        for request in std::mem::take(&mut self.parked) {
            self.run(&request);
        }
    }

    /// Regions known.
    #[must_use]
    pub fn regions(&self) -> usize {
        self.region_count
    }

    fn run(&mut self, request: &Submitted) {
        let result = if let Some(code) = self.fail {
            Err(code)
        } else {
            self.execute(request).ok_or(ErrorCode::Invalid)
        };
        let cookie = request.cookie;
        self.events.push_back(VolumeEvent::Done { cookie, result });
    }

    /// Writes the whole of `bytes` to the memory of `segments`.
    fn put(&self, segments: &[Segment], mut bytes: &[u8]) -> Option<()> {
        for segment in segments {
            let (now, rest) = bytes.split_at_checked(segment.len as usize)?;
            let region = self.regions.get(RegionId(segment.region))?;
            region.write(segment.offset, now).ok()?;
            bytes = rest;
        }
        bytes.is_empty().then_some(())
    }

    fn execute(&mut self, request: &Submitted) -> Option<()> {
        let start = usize::try_from(request.offset).ok()?;
        let end = start.checked_add(usize::try_from(request.len).ok()?)?;
        let data = self.data.get_mut(start..end)?;
        match request.op {
            VolumeOp::Flush => {}
            VolumeOp::BlockStatus => {
                let page = status_page(data, &request.segments)?;
                self.put(&request.segments, &page)?;
            }
            VolumeOp::Discard | VolumeOp::WriteZeroes { .. } => data.fill(0),
            VolumeOp::Read | VolumeOp::Write { .. } => {
                let mut at = 0;
                for segment in &request.segments {
                    let region = self.regions.get(RegionId(segment.region))?;
                    let piece = data.get_mut(at..at + segment.len as usize)?;
                    if request.op == VolumeOp::Read {
                        region.write(segment.offset, piece).ok()?;
                    } else {
                        region.read(segment.offset, piece).ok()?;
                    }
                    at += piece.len();
                }
                if at != data.len() {
                    return None;
                }
            }
        }
        Some(())
    }
}

/// The page of a status: a block of zeros is a hole, whoever wrote it.
fn status_page(data: &[u8], segments: &[Segment]) -> Option<Vec<u8>> {
    let len: u32 = segments.iter().map(|segment| segment.len).sum();
    let is_page = (STATUS_ENTRY_LEN..=STATUS_PAGE_MAX).contains(&len);
    if !is_page || !len.is_multiple_of(STATUS_ENTRY_LEN) || data.is_empty() {
        return None;
    }
    let mut runs: Vec<StatusRun> = Vec::new();
    for block in data.chunks(4096) {
        let state = match block.iter().all(|byte| *byte == 0) {
            true => BlockState::Hole,
            false => BlockState::Data,
        };
        let len = block.len() as u64;
        match runs.last_mut() {
            Some(last) if last.state == state => last.len += len,
            _ => runs.push(StatusRun { len, state }),
        }
    }
    let mut page: Vec<u8> = runs.iter().flat_map(|run| run.encode()).collect();
    page.resize(len as usize, 0);
    Some(page)
}

/// One volume in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryVolumes {
    state: Arc<Mutex<State>>,
}

impl MemoryVolumes {
    /// A volume of `size` zeros.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let volumes = MemoryVolumes::default();
        volumes.state().data = vec![0; size];
        volumes
    }

    /// What a test sees and steers, from any thread.
    ///
    /// # Panics
    /// Never: a poisoned lock is taken as it is.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Volumes for MemoryVolumes {
    fn add_region(&mut self, id: RegionId, region: Region) -> Result<(), ErrorCode> {
        let mut state = self.state();
        state.region_count += 1;
        if state.regions.insert(id, region) {
            Ok(())
        } else {
            Err(ErrorCode::NoSpace)
        }
    }

    fn region_ready(&self, id: RegionId) -> bool {
        self.state().regions.get(id).is_some()
    }

    fn remove_region(&mut self, id: RegionId) {
        let mut state = self.state();
        let named = |request: &Submitted| request.segments.iter().any(|s| s.region == id.0);
        assert!(
            !state.held.iter().chain(&state.parked).any(named),
            "a request in flight names the region"
        );
        assert!(state.regions.remove(id).is_some(), "a region known");
        state.region_count -= 1;
    }

    fn fresh_region(&mut self) -> RegionId {
        let mut state = self.state();
        state.next_region += 1;
        RegionId(state.next_region)
    }

    fn open(&mut self, lineage: Lineage, _mode: OpenMode) -> VolumeHandle {
        let mut state = self.state();
        assert!(!state.open, "opened once");
        state.opens += 1;
        let result = if let Some(code) = state.fail_open {
            Err(Error::new(code, "refused"))
        } else {
            state.open = true;
            Ok(VolumeInfo {
                lineage,
                size: state.data.len() as u64,
                object_size: ObjectSize::DEFAULT,
            })
        };
        state.events.push_back(VolumeEvent::Opened { result });
        VolumeHandle(1)
    }

    fn close(&mut self, _volume: VolumeHandle) {
        let mut state = self.state();
        assert!(
            state.held.is_empty() && state.parked.is_empty() && state.open,
            "closed when nothing is in flight"
        );
        state.open = false;
        state.closes += 1;
        let failed = state.fail_close;
        let result = failed.map_or(Ok(()), |code| Err(Error::new(code, "failed")));
        state.events.push_back(VolumeEvent::Closed { result });
    }

    fn on_full(&mut self, volume: VolumeHandle, policy: OnFull) {
        self.state().policies.push(policy);
        if policy == OnFull::Report {
            self.recall(volume);
        }
    }

    fn recall(&mut self, _volume: VolumeHandle) {
        let mut state = self.state();
        for Submitted { cookie, .. } in std::mem::take(&mut state.parked) {
            let result = Err(ErrorCode::NoSpace);
            state.events.push_back(VolumeEvent::Done { cookie, result });
        }
    }

    fn submit(
        &mut self,
        _volume: VolumeHandle,
        cookie: u64,
        request: VolumeRequest<'_>,
    ) -> Result<(), ErrorCode> {
        let mut state = self.state();
        assert!(state.open, "requests come after the open");
        match &mut state.credits {
            Some(0) => return Err(ErrorCode::Unavailable),
            Some(credits) => *credits -= 1,
            None => {}
        }
        let request = Submitted {
            op: request.op,
            offset: request.offset,
            len: request.len,
            cookie,
            segments: request.segments.to_vec(),
        };
        state.journal.push(request.clone());
        if state.full && matches!(request.op, VolumeOp::Write { .. }) {
            state.parked.push(request);
        } else if state.hold {
            state.held.push(request);
        } else {
            state.run(&request);
        }
        Ok(())
    }

    fn next_event(&mut self, _volume: VolumeHandle) -> Option<VolumeEvent> {
        self.state().events.pop_front()
    }
}
