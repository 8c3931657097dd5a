//! What a mapper is configured with.

use crate::log::{LOG_LEN_MAX, UNIT};

/// Longest pack: what a backend must have room for in one object, as RADOS does by default.
const PACK_LEN_MAX: u64 = 128 << 20;

/// Longest name of a node: what Linux allows for a host's.
pub(crate) const NODE_LEN_MAX: usize = 64;
/// Longest list of a node's addresses.
pub(crate) const ADDRESSES_LEN_MAX: usize = 1024;

/// Who else may serve the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody: a lock of the pool says so. Every other incarnation has ended.
    Alone,
    /// These incarnations, of mappers in the same process: its other data threads. A lock of the pool says that nobody else does. Every
    /// other incarnation has ended.
    Siblings(Vec<u128>),
    /// Other nodes.
    Shared {
        /// Incarnations that are known to have ended, such as the node's own before this one: nothing that they still send reaches
        /// the pool's data.
        ended: Vec<u128>,
    },
}

impl Sharing {
    pub(crate) fn is_shared(&self) -> bool {
        !matches!(self, Sharing::Alone)
    }

    /// Whether `incarnation`, which is another one than the mapper's own, is known to have ended.
    pub(crate) fn has_ended(&self, incarnation: u128) -> bool {
        match self {
            Sharing::Alone => true,
            Sharing::Siblings(siblings) => !siblings.contains(&incarnation),
            Sharing::Shared { ended } => ended.contains(&incarnation),
        }
    }
}

/// Sizes and identity of a mapper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapperConfig {
    /// The incarnation: random, not 0, never used before. It owns what the mapper opens.
    pub owner: u128,
    /// Name of the node, for people: at most 64 bytes.
    pub node: String,
    /// What a fence of this incarnation has to name, in words of the backend; at most 1024 bytes.
    pub addresses: String,
    /// Who else may serve the pool.
    pub sharing: Sharing,
    /// Bytes of the logs of volumes that are opened for the first time; a multiple of 4096, 64 KiB to 128 MiB.
    pub log_len: u64,
    /// Bytes of the catalogue's log when the pool is new; likewise.
    pub catalogue_log_len: u64,
    /// Memory for map pages of all volumes, in bytes.
    pub cache_bytes: usize,
    /// First writes and zeroed ranges of a volume that may wait to be logged. Not more than its journal holds.
    pub pending_max: usize,
    /// Bytes of a pack of map pages or catalogue pages, a multiple of 4096, at most 128 MiB: what follows goes to the next pack.
    /// Only a page that is longer, alone in its pack, passes it.
    pub pack_len_max: u64,
    /// Longest object read or write, a multiple of 4096: what the channel's arena has room for.
    pub io_len_max: usize,
}

impl Default for MapperConfig {
    /// 4 MiB logs hold some 130,000 records; 32,768 pending ones are 1.5 MiB of journal; 64 MiB of pages map 16 TiB and
    /// more of data that was written in order.
    fn default() -> Self {
        MapperConfig {
            owner: 1,
            node: String::new(),
            addresses: String::new(),
            sharing: Sharing::Alone,
            log_len: 4 << 20,
            catalogue_log_len: 4 << 20,
            cache_bytes: 64 << 20,
            pending_max: 32_768,
            pack_len_max: PACK_LEN_MAX,
            io_len_max: 256 << 10,
        }
    }
}

impl MapperConfig {
    /// # Panics
    /// If the sizes are not what their descriptions say.
    pub(crate) fn check(&self) {
        let unit = UNIT as u64;
        for len in [self.log_len, self.catalogue_log_len] {
            assert!(
                len.is_multiple_of(unit) && len >= 16 * unit && len <= LOG_LEN_MAX,
                "log length {len}"
            );
        }
        assert!(
            self.io_len_max >= 4 * UNIT && self.io_len_max.is_multiple_of(UNIT),
            "longest object request"
        );
        let pack = self.pack_len_max;
        assert!(
            pack > 0 && pack.is_multiple_of(unit) && pack <= PACK_LEN_MAX,
            "pack length {pack}"
        );
        assert!(self.pending_max > 0, "pending records");
        assert!(self.owner != 0, "an incarnation has an id");
        assert!(
            self.node.len() <= NODE_LEN_MAX && self.addresses.len() <= ADDRESSES_LEN_MAX,
            "name and addresses of the node"
        );
    }
}
