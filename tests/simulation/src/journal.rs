//! The production mapper, with journals that survive the death of its process.

use archipelago_doubles::MemoryJournals;
use archipelago_mapper::{Mapper, MapperConfig, Sharing};

/// Records that fit into a journal.
const RECORDS: usize = 128;
/// The shortest logs that there are, so that runs go round them and checkpoint.
const LOG_LEN: u64 = 64 << 10;

/// Short packs, so that runs go on to the next.
const PACK_LEN: u64 = 8 << 10;

/// Longest object request of the mapper, in bytes.
pub(crate) const IO_LEN_MAX: usize = 64 << 10;

/// The journals of all volumes.
#[must_use]
pub fn journals() -> MemoryJournals {
    MemoryJournals::new(RECORDS)
}

/// The production mapper of the node `owner` with these journals, started.
#[must_use]
pub fn mapper(owner: u128, journals: &MemoryJournals) -> Mapper {
    let mut mapper = unstarted(owner, journals);
    mapper.start();
    mapper
}

/// The same before it has read anything: as it checks a pool that nobody serves.
#[must_use]
pub fn unstarted(owner: u128, journals: &MemoryJournals) -> Mapper {
    let config = MapperConfig {
        owner,
        node: format!("node {owner}"),
        addresses: String::new(),
        sharing: Sharing::Alone,
        log_len: LOG_LEN,
        catalogue_log_len: LOG_LEN,
        cache_bytes: 1 << 20,
        pending_max: RECORDS,
        pack_len_max: PACK_LEN,
        io_len_max: IO_LEN_MAX,
    };
    Mapper::new(config, Box::new(journals.clone()))
}
