//! What survives the death of a process: the presence journals, in the production format, and nothing after a power cut.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use archipelago_mapper::journal::{
    self, Journal, JournalArea, JournalMemory, JournalStore, Recovered,
};
use archipelago_mapper::{Mapper, MapperConfig};
use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::{Generation, Lineage};

/// Records that fit.
const RECORDS: usize = 128;
const LEN: usize = journal::len_for(RECORDS);
/// The shortest logs that there are, so that runs go round them and checkpoint.
const LOG_LEN: u64 = 64 << 10;
const BOOT: u128 = 1;

/// Memory that outlives a process.
#[derive(Debug, Clone)]
struct Area(Rc<RefCell<Vec<u8>>>);

/// The journals of all volumes. Clones share them, snapshots do not.
#[derive(Debug, Clone, Default)]
pub struct Journals {
    areas: Rc<RefCell<BTreeMap<Lineage, Area>>>,
}

impl Journals {
    /// As they are now, whatever becomes of these.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let copy = |area: &Area| Area(Rc::new(RefCell::new(area.0.borrow().clone())));
        let areas = self
            .areas
            .borrow()
            .iter()
            .map(|(lineage, area)| (*lineage, copy(area)))
            .collect();
        Journals {
            areas: Rc::new(RefCell::new(areas)),
        }
    }
}

/// The production mapper of the node `owner` with these journals, started.
#[must_use]
pub fn mapper(owner: u128, journals: &Journals) -> Mapper {
    let mut mapper = unstarted(owner, journals);
    mapper.start();
    mapper
}

/// The same before it has read anything: as it checks a pool that nobody serves.
#[must_use]
pub fn unstarted(owner: u128, journals: &Journals) -> Mapper {
    let config = MapperConfig {
        owner,
        log_len: LOG_LEN,
        catalogue_log_len: LOG_LEN,
        cache_bytes: 1 << 20,
        pending_max: RECORDS,
        io_len_max: 64 << 10,
    };
    Mapper::new(config, Box::new(journals.clone()))
}

impl JournalMemory for Area {
    fn size(&self) -> u64 {
        LEN as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        let at = usize::try_from(offset).expect("inside the length");
        into.copy_from_slice(&self.0.borrow()[at..at + into.len()]);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).expect("inside the length");
        self.0.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

impl JournalStore for Journals {
    fn open(
        &mut self,
        lineage: Lineage,
        generation: Generation,
    ) -> Result<Box<dyn Journal>, ErrorCode> {
        let area = Area(Rc::new(RefCell::new(vec![0; LEN])));
        self.areas.borrow_mut().insert(lineage, area.clone());
        Ok(Box::new(JournalArea::create(
            area, BOOT, lineage, generation,
        )))
    }

    fn load(&mut self, lineage: Lineage) -> Option<Recovered> {
        let areas = self.areas.borrow();
        journal::load(areas.get(&lineage)?, BOOT, lineage)
    }

    fn remove(&mut self, lineage: Lineage) {
        self.areas.borrow_mut().remove(&lineage);
    }
}
