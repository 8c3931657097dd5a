use super::*;
use crate::wire::command;

#[test]
fn replies_have_the_bytes_of_the_specification() {
    let simple = ReplyHeader::simple(7, Err(Errno::NoSpc));
    assert_eq!(
        simple.bytes(),
        [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 7]
    );
    let data = ReplyHeader::data(7, Done::Yes, 4096, 512);
    let chunk = |flags, kind: [u8; 2], len: [u8; 2]| {
        let mut bytes = vec![0x66, 0x8e, 0x33, 0xef, 0, flags];
        bytes.extend(kind);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 7, 0, 0]);
        bytes.extend(len);
        bytes
    };
    let mut expected = chunk(1, [0, 1], [2, 8]);
    expected.extend([0, 0, 0, 0, 0, 0, 0x10, 0]);
    assert_eq!(data.bytes(), expected);
    let error = ReplyHeader::error_at(7, Done::No, Errno::Io, 512);
    let mut expected = chunk(0, [0x80, 2], [0, 14]);
    expected.extend([0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    assert_eq!(error.bytes(), expected);
    assert_eq!(ReplyHeader::nothing(7).bytes(), chunk(1, [0, 0], [0, 0]));
    let mut expected = chunk(1, [0, 5], [0, 20]);
    expected.extend([0, 0, 0, 1]);
    assert_eq!(ReplyHeader::extents(7, 2).bytes(), expected);
    assert_eq!(extent(512, BlockState::Hole), [0, 0, 2, 0, 0, 0, 0, 3]);
    assert_eq!(extent(512, BlockState::Data), [0, 0, 2, 0, 0, 0, 0, 0]);
    let mut expected = chunk(1, [0x80, 1], [0, 6]);
    expected.extend([0, 0, 0, 22, 0, 0]);
    assert_eq!(ReplyHeader::error(7, Errno::Inval).bytes(), expected);
}

#[test]
fn requests_without_work_are_answered_in_chunks_where_the_client_wants_them() {
    let terms = |structured| Terms {
        size: 1 << 20,
        read_only: false,
        structured,
        block_status: structured,
    };
    let header = |command| Header {
        flags: 0,
        command,
        cookie: 7,
        offset: 0,
        len: 0,
    };
    for (command, structured, in_chunks) in [
        (command::READ, true, true),
        (command::READ, false, false),
        (command::BLOCK_STATUS, true, true),
        (command::WRITE, true, false),
        (command::CACHE, true, false),
    ] {
        let (header, terms) = (header(command), terms(structured));
        let (noop, refused) = match in_chunks {
            true => (ReplyHeader::nothing(7), ReplyHeader::error(7, Errno::Inval)),
            false => (
                ReplyHeader::simple(7, Ok(())),
                ReplyHeader::simple(7, Err(Errno::Inval)),
            ),
        };
        assert_eq!(ReplyHeader::noop(&header, &terms).bytes(), noop.bytes());
        let answered = ReplyHeader::refused(&header, &terms, Errno::Inval);
        assert_eq!(answered.bytes(), refused.bytes());
    }
}
