//! The ABI between the kernel's ublk driver and its servers: the constants and structures of `linux/ublk_cmd.h` that this program uses.

// The lengths are those of the kernel, except that of the parameters: ours are a prefix of the kernel's, which contain their length.
const _: () = {
    assert!(size_of::<ControlCommand>() == 32);
    assert!(size_of::<DeviceInfo>() == 64);
    assert!(size_of::<Descriptor>() == 24);
    assert!(size_of::<QueueCommand>() == 16);
    assert!(size_of::<Parameters>() == 64);
};

/// Directions of `_IOC`: reads from the kernel, and both ways.
const READ: u32 = 2;
const READ_WRITE: u32 = 3;

/// A command number of type `u`, as `_IOR` and `_IOWR` encode it.
const fn encoded(direction: u32, number: u32, size: usize) -> u32 {
    // A structure has only a few bytes.
    #[expect(clippy::cast_possible_truncation, reason = "structures of some bytes")]
    let size = size as u32;
    direction << 30 | size << 16 | (b'u' as u32) << 8 | number
}

const fn control_command(direction: u32, number: u32) -> u32 {
    encoded(direction, number, size_of::<ControlCommand>())
}

/// Commands on `/dev/ublk-control`.
pub(crate) mod control_op {
    use super::{READ, READ_WRITE, control_command};

    pub(crate) const GET_DEV_INFO: u32 = control_command(READ, 0x02);
    pub(crate) const ADD_DEV: u32 = control_command(READ_WRITE, 0x04);
    pub(crate) const DEL_DEV: u32 = control_command(READ_WRITE, 0x05);
    pub(crate) const START_DEV: u32 = control_command(READ_WRITE, 0x06);
    pub(crate) const STOP_DEV: u32 = control_command(READ_WRITE, 0x07);
    pub(crate) const SET_PARAMS: u32 = control_command(READ_WRITE, 0x08);
    pub(crate) const START_USER_RECOVERY: u32 = control_command(READ_WRITE, 0x10);
    pub(crate) const END_USER_RECOVERY: u32 = control_command(READ_WRITE, 0x11);
    pub(crate) const GET_FEATURES: u32 = control_command(READ, 0x13);
    pub(crate) const UPDATE_SIZE: u32 = control_command(READ_WRITE, 0x15);
}

/// Commands on `/dev/ublkcN`.
pub(crate) mod queue_op {
    use super::{QueueCommand, READ_WRITE, encoded};

    pub(crate) const FETCH: u32 = encoded(READ_WRITE, 0x20, size_of::<QueueCommand>());
    pub(crate) const COMMIT_AND_FETCH: u32 = encoded(READ_WRITE, 0x21, size_of::<QueueCommand>());
}

/// Features of a kernel and of a device.
pub mod feature {
    /// If the server dies, the device waits for another one.
    pub const USER_RECOVERY: u64 = 1 << 3;
    /// Also passes to the new server the requests that the dead one had not answered.
    pub const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    /// Commands have the numbers of this module.
    pub const CMD_IOCTL_ENCODE: u64 = 1 << 6;
    /// The size of a running device can be changed (Linux 6.16).
    pub const UPDATE_SIZE: u64 = 1 << 10;
}

/// States of a device.
pub mod state {
    /// Not started yet, or stopped.
    pub const DEAD: u16 = 0;
    /// A server answers its requests.
    pub const LIVE: u16 = 1;
    /// Its server has died, and requests wait.
    pub const QUIESCED: u16 = 2;
}

/// Operations of a request: the lowest byte of [`Descriptor::op_flags`].
pub mod operation {
    /// Reads into the buffer.
    pub const READ: u32 = 0;
    /// Writes from the buffer.
    pub const WRITE: u32 = 1;
    /// Makes all answered writes durable.
    pub const FLUSH: u32 = 2;
    /// The contents of the range are no longer needed.
    pub const DISCARD: u32 = 3;
    /// The range reads as zeros.
    pub const WRITE_ZEROES: u32 = 5;
    /// Mask of the operation.
    pub const MASK: u32 = 0xff;
    /// A flag: the write must be durable when it is answered.
    pub const FUA: u32 = 1 << 13;
    /// A flag: the range of zeros keeps its space.
    pub const NO_UNMAP: u32 = 1 << 15;
}

/// Result of a command on a queue whose device has been stopped.
pub const ABORTED: i32 = -libc::ENODEV;

/// `struct ublksrv_ctrl_cmd`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ControlCommand {
    pub(crate) device: u32,
    pub(crate) queue: u16,
    pub(crate) len: u16,
    pub(crate) address: u64,
    pub(crate) data: u64,
    pub(crate) path_len: u16,
    pub(crate) pad: u16,
    pub(crate) reserved: u32,
}

/// `struct ublksrv_ctrl_dev_info`: a device.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceInfo {
    /// Queues.
    pub queues: u16,
    /// Requests of a queue.
    pub depth: u16,
    /// One of [`state`].
    pub state: u16,
    /// Zero.
    pub pad0: u16,
    /// Bytes of the longest read or write.
    pub buffer_len: u32,
    /// Number of the device.
    pub device: u32,
    /// Process that serves it.
    pub server: i32,
    /// Zero.
    pub pad1: u32,
    /// Of [`feature`].
    pub flags: u64,
    /// A value of the server that the kernel keeps and does not interpret.
    pub mark: u64,
    /// Owner of a device of an unprivileged user.
    pub owner_uid: u32,
    /// Group of that owner.
    pub owner_gid: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

/// `struct ublk_params`, up to the last part that is used: basics and discard.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parameters {
    /// Bytes of this structure.
    pub len: u32,
    /// Which parts are present: of [`parameter`].
    pub types: u32,
    /// Of [`attribute`].
    pub attributes: u32,
    /// Bytes of a logical block, as a power of two.
    pub logical_block_shift: u8,
    /// Of a physical one.
    pub physical_block_shift: u8,
    /// Optimal size of a request.
    pub io_opt_shift: u8,
    /// Smallest size of a request that wastes nothing.
    pub io_min_shift: u8,
    /// Sectors of the longest read or write.
    pub sectors_max: u32,
    /// Zero: requests may cross any boundary.
    pub chunk_sectors: u32,
    /// Size of the device.
    pub sectors: u64,
    /// Zero.
    pub virtual_boundary: u64,
    /// Bytes.
    pub discard_alignment: u32,
    /// Bytes.
    pub discard_granularity: u32,
    /// Sectors of the longest discard.
    pub discard_sectors_max: u32,
    /// Sectors of the longest range of zeros.
    pub zeroes_sectors_max: u32,
    /// Ranges of a discard: the kernel takes one.
    pub discard_segments_max: u16,
    /// Zero.
    pub reserved: u16,
    /// Zero, to a multiple of eight bytes.
    pub pad: u32,
}

/// Parts of [`Parameters`].
pub mod parameter {
    /// Basic parameters.
    pub const BASIC: u32 = 1 << 0;
    /// Discard and zeros.
    pub const DISCARD: u32 = 1 << 1;
}

/// Attributes of a device.
pub mod attribute {
    /// The device refuses writes.
    pub const READ_ONLY: u32 = 1 << 0;
    /// The device needs flushes.
    pub const VOLATILE_CACHE: u32 = 1 << 2;
    /// The device supports durable writes.
    pub const FUA: u32 = 1 << 3;
}

/// `struct ublksrv_io_desc`: a request.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// One of [`operation`], and flags.
    pub op_flags: u32,
    /// Length in sectors.
    pub sectors: u32,
    /// First sector.
    pub start_sector: u64,
    /// Address of the buffer in the server.
    pub address: u64,
}

/// `struct ublksrv_io_cmd`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueCommand {
    pub(crate) queue: u16,
    pub(crate) tag: u16,
    pub(crate) result: i32,
    pub(crate) address: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        // As a C compiler makes them of linux/ublk_cmd.h.
        assert_eq!(control_op::ADD_DEV, 0xc020_7504);
        assert_eq!(control_op::GET_DEV_INFO, 0x8020_7502);
        assert_eq!(control_op::GET_FEATURES, 0x8020_7513);
        assert_eq!(control_op::UPDATE_SIZE, 0xc020_7515);
        assert_eq!(queue_op::FETCH, 0xc010_7520);
        assert_eq!(queue_op::COMMIT_AND_FETCH, 0xc010_7521);
    }

    #[test]
    fn parameters_have_the_layout_of_the_header() {
        assert_eq!(std::mem::offset_of!(Parameters, sectors_max), 16);
        assert_eq!(std::mem::offset_of!(Parameters, sectors), 24);
        assert_eq!(std::mem::offset_of!(Parameters, discard_alignment), 40);
        assert_eq!(std::mem::offset_of!(Parameters, discard_segments_max), 56);
        assert_eq!(std::mem::offset_of!(DeviceInfo, mark), 32);
    }
}
