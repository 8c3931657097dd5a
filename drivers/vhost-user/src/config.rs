//! How a device is attached, its feature bits, and the configuration space of virtio-blk.

use std::path::PathBuf;
use std::time::Duration;

use archipelago_protocol::ids::SECTOR_SIZE;
use archipelago_protocol::{Error, ErrorCode, ServedVolume};
use vhost::vhost_user::message::VhostUserProtocolFeatures;

/// Most queues of one device: QEMU's default is one per vCPU.
pub const QUEUES_MAX: u16 = 256;
/// Most entries of one ring: the virtio specification's limit.
pub const RING_SIZE_MAX: u16 = 32_768;
/// Data segments of one request that a guest may use.
pub const SEG_MAX: u32 = 254;
/// Most ranges of one discard or write-zeroes request.
pub const RANGES_MAX: usize = 32;
/// Most sectors of one such range: 1 GiB, so that one request is a bounded amount of work for the mapper.
pub const RANGE_SECTORS_MAX: u32 = 1 << 21;
/// Bytes of the configuration space that are defined.
pub const CONFIG_LEN: usize = 60;
/// Offset of the write-cache byte in it.
pub const WRITEBACK_AT: u32 = 32;
/// Bytes of the answer to GET_ID.
pub const SERIAL_LEN: usize = 20;

/// Feature bits: virtio 1.2, sections 5.2.3 and 6.
pub mod feature {
    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// Read-only.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is valid.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Flush requests.
    pub const FLUSH: u64 = 1 << 9;
    /// Topology is valid.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// The guest may switch the write cache.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// Several queues.
    pub const MQ: u64 = 1 << 12;
    /// Discard requests.
    pub const DISCARD: u64 = 1 << 13;
    /// Write-zeroes requests.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// Legacy: an interrupt when the ring runs empty, whatever the guest has requested. Not offered.
    pub const NOTIFY_ON_EMPTY: u64 = 1 << 24;
    /// vhost: log what is written into guest memory.
    pub const LOG_ALL: u64 = 1 << 26;
    /// Legacy: requests are cut into descriptors in any way. Not offered.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Indirect descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notification thresholds.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// vhost-user: protocol features.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// Virtio 1.
    pub const VERSION_1: u64 = 1 << 32;
    /// Memory is accessed in the order that the platform's devices use. Not offered.
    pub const ORDER_PLATFORM: u64 = 1 << 36;

    /// Features that a front end may show to its guest although they were not offered, and that are honoured: every layout is supported,
    /// and the ring is accessed with the barriers that a device of the platform would need.
    pub const KEPT_UNASKED: u64 = ANY_LAYOUT | ORDER_PLATFORM;
}

/// How a volume is attached.
#[derive(Debug, Clone)]
pub struct AttachConfig {
    /// The settings of every kind of endpoint.
    pub volume: ServedVolume,
    /// Path of the socket; a stale socket there is replaced.
    pub socket: PathBuf,
    /// Mode bits of the socket; [`AttachConfig::SOCKET_MODE`] unless a group shall have access.
    pub socket_mode: u32,
    /// Queues offered: 1 to [`QUEUES_MAX`].
    pub queues: u16,
    /// A front end that connects or starts its rings repeatedly waits for this time before each start; a burst is free.
    /// Zero: never. [`AttachConfig::START_INTERVAL`] unless front ends are trusted.
    pub start_interval: Duration,
}

impl AttachConfig {
    /// Access for the owner alone.
    pub const SOCKET_MODE: u32 = 0o600;
    /// Four a second: each start costs the pool some synced writes.
    pub const START_INTERVAL: Duration = Duration::from_millis(250);

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] naming the value and its range.
    pub fn check(&self) -> Result<(), Error> {
        let refused = |text: String| Err(Error::new(ErrorCode::Invalid, text));
        if self.queues == 0 || self.queues > QUEUES_MAX {
            return refused(format!(
                "{} queues are not in 1..={QUEUES_MAX}",
                self.queues
            ));
        }
        if !self.volume.size.is_multiple_of(SECTOR_SIZE) {
            return refused(format!(
                "size {} is not a multiple of 512",
                self.volume.size
            ));
        }
        if self.socket_mode & !0o777 != 0 {
            return refused(format!(
                "socket mode {:o} is not in 0..=777",
                self.socket_mode
            ));
        }
        Ok(())
    }

    /// Virtio features offered.
    #[must_use]
    pub fn features(&self) -> u64 {
        use feature::{
            BLK_SIZE, CONFIG_WCE, DISCARD, EVENT_IDX, FLUSH, INDIRECT_DESC, LOG_ALL, MQ,
            PROTOCOL_FEATURES, RO, SEG_MAX, TOPOLOGY, VERSION_1, WRITE_ZEROES,
        };
        let always = SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY | CONFIG_WCE;
        let ring = LOG_ALL | INDIRECT_DESC | EVENT_IDX | PROTOCOL_FEATURES | VERSION_1;
        let access = if self.volume.read_only {
            RO
        } else {
            DISCARD | WRITE_ZEROES
        };
        let many = if self.queues > 1 { MQ } else { 0 };
        always | ring | access | many
    }

    /// Virtio features that a front end may set: the offered ones, and some that QEMU shows to a guest by itself (legacy guests see
    /// ANY_LAYOUT by default).
    #[must_use]
    pub fn accepted_features(&self) -> u64 {
        self.features() | feature::KEPT_UNASKED | feature::NOTIFY_ON_EMPTY
    }

    /// The first bytes of the configuration space.
    #[must_use]
    pub fn space(&self, size: u64, writeback: bool) -> [u8; CONFIG_LEN] {
        let ranges = u32::try_from(RANGES_MAX).unwrap_or(u32::MAX);
        let sectors = |bytes: u64| u32::try_from(bytes / SECTOR_SIZE).unwrap_or(u32::MAX);
        let mut space = [0; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(size / SECTOR_SIZE).to_le_bytes()); // capacity
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &512u32.to_le_bytes()); // blk_size
        put(24, &[3]); // physical_block_exp: 4096 bytes
        put(26, &8u16.to_le_bytes()); // min_io_size, in logical blocks
        put(28, &sectors(self.volume.object_size.bytes()).to_le_bytes()); // opt_io_size
        put(32, &[u8::from(writeback)]);
        put(34, &self.queues.to_le_bytes());
        put(36, &RANGE_SECTORS_MAX.to_le_bytes()); // discard
        put(40, &ranges.to_le_bytes());
        put(44, &8u32.to_le_bytes()); // discard_sector_alignment: 4096 bytes
        put(48, &RANGE_SECTORS_MAX.to_le_bytes()); // write zeroes
        put(52, &ranges.to_le_bytes());
        put(56, &[1]); // write_zeroes_may_unmap
        space
    }

    /// The answer to GET_ID.
    #[must_use]
    pub fn id(&self) -> [u8; SERIAL_LEN] {
        let mut id = [0; SERIAL_LEN];
        for (to, from) in id.iter_mut().zip(self.volume.serial.bytes()) {
            *to = from;
        }
        id
    }
}

/// vhost-user protocol features offered. The crate `vhost` adds REPLY_ACK by itself.
#[must_use]
pub fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
}
