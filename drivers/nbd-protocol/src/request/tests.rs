use proptest::prelude::*;

use super::*;

const TERMS: Terms = Terms {
    size: 1 << 20,
    read_only: false,
    structured: true,
    block_status: true,
};

fn header(command: u16, flags: u16, offset: u64, len: u32) -> Header {
    Header {
        flags,
        command,
        cookie: 7,
        offset,
        len,
    }
}

#[test]
fn a_header_has_the_bytes_of_the_specification() {
    let header = header(
        command::WRITE,
        command_flag::FUA,
        0x0102_0304_0506_0708,
        512,
    );
    let mut bytes = [0; HEADER_LEN];
    bytes[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
    bytes[5] = 1;
    bytes[7] = 1;
    bytes[15] = 7;
    bytes[16..24].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    bytes[26] = 2;
    assert_eq!(header.encode(), bytes);
    assert_eq!(Header::decode(&bytes), Ok(header));
    bytes[0] = 0;
    assert_eq!(Header::decode(&bytes), Err(Violation::Magic(0x0060_9513)));
}

#[test]
fn data_that_would_be_too_much_to_take_breaks_the_connection() {
    let header = header(command::WRITE, 0, 0, BLOCK_MAX + 1);
    let refused = Header::decode(&header.encode());
    assert_eq!(refused, Err(Violation::WriteLen(BLOCK_MAX + 1)));
}

#[test]
fn requests_that_cannot_be_right_get_the_errors_of_the_specification() {
    use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
    let size = TERMS.size;
    for (command, flags, offset, len, expected) in [
        (command::READ, 0, 0, 512, Ok(Command::Read)),
        (command::READ, FUA, size, 0, Ok(Command::Read)),
        (command::READ, DF, 0, PIECE_MAX, Ok(Command::Read)),
        (command::READ, DF, 0, PIECE_MAX + 512, Err(Errno::Overflow)),
        (command::READ, 0, 1, 512, Err(Errno::Inval)),
        (command::READ, 0, 0, 511, Err(Errno::Inval)),
        (command::READ, 0, size, 512, Err(Errno::Inval)),
        (command::READ, 0, u64::MAX - 511, 512, Err(Errno::Inval)),
        (command::READ, NO_HOLE, 0, 512, Err(Errno::Inval)),
        (command::READ, REQ_ONE, 0, 512, Err(Errno::Inval)),
        (
            command::WRITE,
            FUA,
            0,
            512,
            Ok(Command::Write { durable: true }),
        ),
        (command::WRITE, 0, size, 512, Err(Errno::NoSpc)),
        (command::WRITE, DF, 0, 512, Err(Errno::Inval)),
        (command::FLUSH, 0, 0, 0, Ok(Command::Flush)),
        (
            command::TRIM,
            FUA,
            0,
            512,
            Ok(Command::Trim { durable: true }),
        ),
        (command::TRIM, 0, size, 512, Err(Errno::Inval)),
        (command::CACHE, 0, 0, 512, Ok(Command::Cache)),
        (command::CACHE, 0, size, 512, Err(Errno::Inval)),
        (
            command::WRITE_ZEROES,
            0,
            0,
            512,
            Ok(Command::WriteZeroes {
                unmap: true,
                durable: false,
            }),
        ),
        (
            command::WRITE_ZEROES,
            NO_HOLE | FUA,
            0,
            512,
            Ok(Command::WriteZeroes {
                unmap: false,
                durable: true,
            }),
        ),
        (
            command::WRITE_ZEROES,
            FAST_ZERO,
            0,
            512,
            Ok(Command::WriteZeroes {
                unmap: true,
                durable: false,
            }),
        ),
        (
            command::WRITE_ZEROES,
            FAST_ZERO | NO_HOLE,
            0,
            512,
            Err(Errno::NotSup),
        ),
        (command::WRITE_ZEROES, 0, size, 512, Err(Errno::NoSpc)),
        (command::DISC, 0, 0, 0, Ok(Command::Disconnect)),
        (
            command::BLOCK_STATUS,
            0,
            0,
            512,
            Ok(Command::BlockStatus { one: false }),
        ),
        (
            command::BLOCK_STATUS,
            REQ_ONE,
            512,
            512,
            Ok(Command::BlockStatus { one: true }),
        ),
        (command::BLOCK_STATUS, 0, 0, 0, Err(Errno::Inval)),
        (command::BLOCK_STATUS, 0, size, 512, Err(Errno::Inval)),
        (9, 0, 0, 0, Err(Errno::Inval)),
        (u16::MAX, 0, 0, 0, Err(Errno::Inval)),
        (command::READ, 1 << 15, 0, 512, Err(Errno::Inval)),
    ] {
        let header = header(command, flags, offset, len);
        assert_eq!(header.check(&TERMS), expected, "{header:?}");
    }
    let frozen = Terms {
        read_only: true,
        ..TERMS
    };
    for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        let checked = header(command, 0, 0, 512).check(&frozen);
        assert_eq!(checked, Err(Errno::Perm));
    }
    let unasked = Terms {
        block_status: false,
        ..TERMS
    };
    let refused = header(command::BLOCK_STATUS, 0, 0, 512).check(&unasked);
    assert_eq!(refused, Err(Errno::Inval));
    let simple = Terms {
        structured: false,
        ..TERMS
    };
    assert_eq!(
        header(command::READ, DF, 0, 512).check(&simple),
        Err(Errno::Inval)
    );
}

proptest! {
    #[test]
    fn what_passes_the_check_is_inside_and_aligned(command in 0..12_u16, flags in 0..64_u16, offset: u64, len: u32, small: bool) {
        let offset = if small { offset % (2 << 20) / 512 * 512 } else { offset };
        let len = if small { len % (2 << 20) / 512 * 512 } else { len };
        let header = header(command, flags, offset, len);
        if let Ok(Command::Read | Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. }) = header.check(&TERMS) {
            prop_assert!(offset + u64::from(len) <= TERMS.size);
            prop_assert!(offset % 512 == 0 && len % 512 == 0);
        }
    }
}
