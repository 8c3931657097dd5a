//! What an administrator sees of the errors that guests get.

use archipelago_protocol::ErrorCode;
use archipelago_vhost_user::Counters;

use crate::front_end::{FrontEnd, GUEST, MEMORY, WRITE};
use crate::host::{Host, SIZE, eventually};
use crate::log::{collect, lines};

fn served() -> (Host, FrontEnd) {
    collect();
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.start();
    (host, guest)
}

#[test]
fn each_error_is_logged_with_its_cause_and_counted_by_it() {
    type Row = (
        Option<ErrorCode>,
        u32,
        u64,
        &'static str,
        fn(&Counters) -> u64,
    );
    let end = SIZE as u64 / 512;
    let rows: [Row; 9] = [
        (
            Some(ErrorCode::NoSpace),
            1,
            8,
            "write of 512 bytes at 4096: the volume answered: no space left",
            |c| c.errors_no_space,
        ),
        (
            Some(ErrorCode::Io),
            0,
            8,
            "read of 512 bytes at 4096: the volume answered: input or output error",
            |c| c.errors_io,
        ),
        (
            Some(ErrorCode::SyncFailed),
            4,
            0,
            "flush of 0 bytes at 0: the volume answered: the data could not be made durable",
            |c| c.errors_sync_failed,
        ),
        (
            Some(ErrorCode::Stale),
            1,
            0,
            "answered: another session has taken the volume over",
            |c| c.errors_stale,
        ),
        (
            Some(ErrorCode::Unavailable),
            1,
            0,
            "answered: not available",
            |c| c.errors_unavailable,
        ),
        (Some(ErrorCode::Damaged), 0, 0, "answered: damaged", |c| {
            c.errors_other
        }),
        (
            None,
            0,
            end,
            "512 bytes at sector 32768 are not whole sectors within a volume of 16777216 bytes",
            |c| c.errors_refused,
        ),
        (
            None,
            11,
            0,
            "a list of ranges of 528 bytes is not 1 to 32 ranges of 16 bytes",
            |c| c.errors_refused,
        ),
        (
            None,
            8,
            0,
            "the buffer for the serial has 0 bytes instead of 20",
            |c| c.errors_refused,
        ),
    ];
    for (fail, kind, sector, text, counter) in rows {
        let (host, mut guest) = served();
        host.volumes.state().fail = fail;
        let flags = if kind == 0 { WRITE } else { 0 };
        let len = match kind {
            11 => 33 * 16,
            4 => 0,
            _ => 512,
        };
        guest.submit(0, kind, sector, len, flags);
        guest.used();
        assert_eq!(guest.status(0), 1, "{text}");
        let lines = lines(&host.socket, "the guest gets an I/O error");
        assert_eq!(lines.len(), 1, "{text}");
        assert!(lines[0].contains(text), "{text}: {lines:?}");
        let status = host.status();
        assert_eq!((status.errors, counter(&status)), (1, 1), "{text}");
    }
}

#[test]
fn errors_of_a_volume_that_cannot_be_opened_and_of_a_bad_chain_are_named() {
    let (host, mut guest) = served();
    guest.submit(0, 0, 0, 512, WRITE);
    guest.used();
    guest.descriptor(1, GUEST + MEMORY, 512, 1 | WRITE, 2);
    guest.offer(0);
    guest.ring();
    guest.used();
    let text = "the buffer of 512 bytes at 0x200000 is not in guest memory";
    assert_eq!(lines(&host.socket, text).len(), 1);
    guest.stop_ring();
    drop(guest);
    let (host, mut guest) = {
        let host = Host::new();
        host.volumes.state().fail_open = Some(ErrorCode::Damaged);
        let mut guest = FrontEnd::connect(&host.socket);
        guest.start();
        (host, guest)
    };
    guest.submit(0, 0, 0, 512, WRITE);
    guest.used();
    assert_eq!(
        lines(&host.socket, "the volume could not be opened").len(),
        1
    );
    assert_eq!(host.status().errors_not_open, 1);
}

#[test]
fn many_errors_are_one_line_and_a_count() {
    let (host, mut guest) = served();
    host.volumes.state().fail = Some(ErrorCode::Io);
    for round in 0..500 {
        guest.submit(0, 0, round, 512, WRITE);
        guest.used();
    }
    assert_eq!(lines(&host.socket, "I/O error").len(), 1);
    assert_eq!(host.status().errors_io, 500);
    drop(guest);
    let text = "got 499 more I/O errors within 10 s, the last: read of 512 bytes at 255488";
    eventually("the count", || lines(&host.socket, text).len() == 1);
}
