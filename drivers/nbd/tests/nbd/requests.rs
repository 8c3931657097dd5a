use archipelago_nbd::layout::CELL_LEN;
use archipelago_nbd_protocol::offer::BLOCK_MAX;
use archipelago_protocol::ErrorCode;
use archipelago_protocol::volume::VolumeOp;

use crate::client::{Client, Replies};
use crate::host::{Host, SIZE, eventually};

const BOTH: [Replies; 2] = [Replies::Simple, Replies::Structured];

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    // 251 is a prime, so no two blocks near each other look alike.
    let numbers: Vec<u8> = (0..251_u8).map(|it| it.wrapping_add(seed)).collect();
    let mut pattern = numbers.repeat(len.div_ceil(251));
    pattern.truncate(len);
    pattern
}

#[test]
fn what_is_written_is_read_at_every_length() {
    for replies in BOTH {
        let host = Host::new();
        let mut client = Client::connect(&host, replies);
        let cell = CELL_LEN as usize;
        for len in [
            512,
            1024,
            4096,
            cell - 512,
            cell,
            cell + 512,
            9 * cell,
            BLOCK_MAX as usize,
        ] {
            let data = pattern(u8::try_from(len % 200).unwrap(), len);
            client.write(512, &data);
            assert!(
                client.read(512, u32::try_from(len).unwrap()) == data,
                "{len} {replies:?}"
            );
            assert!(host.volumes.state().data[512..512 + len] == data);
        }
        let status = host.status();
        assert_eq!((status.reads, status.writes, status.errors), (8, 8, 0));
        assert_eq!(status.read_bytes, status.written_bytes);
    }
}

#[test]
fn a_long_read_in_chunks_uses_few_cells_and_one_whole_is_answered_whole() {
    for (replies, chunks) in [(Replies::Structured, 256), (Replies::Simple, 0)] {
        let host = Host::new();
        host.volumes.state().data = pattern(3, SIZE);
        let mut client = Client::connect(&host, replies);
        let answer = client.call(0, 0, 0, BLOCK_MAX, &[]);
        assert_eq!(answer.chunks, chunks);
        assert!(answer.bytes() == pattern(3, BLOCK_MAX as usize));
    }
}

#[test]
fn requests_reach_the_volume_as_they_are_meant() {
    let host = Host::new();
    let mut client = Client::connect(&host, Replies::Structured);
    let (fua, no_hole, fast) = (1, 2, 16);
    for (command, flags, expected) in [
        (3, 0, VolumeOp::Flush),
        (4, 0, VolumeOp::Discard),
        (
            4,
            fua,
            VolumeOp::WriteZeroes {
                unmap: true,
                durable: true,
            },
        ),
        (
            6,
            0,
            VolumeOp::WriteZeroes {
                unmap: true,
                durable: false,
            },
        ),
        (
            6,
            fast,
            VolumeOp::WriteZeroes {
                unmap: true,
                durable: false,
            },
        ),
        (
            6,
            no_hole | fua,
            VolumeOp::WriteZeroes {
                unmap: false,
                durable: true,
            },
        ),
    ] {
        let len = if command == 3 { 0 } else { 4096 };
        assert_eq!(client.call(command, flags, 0, len, &[]).errno, 0);
        let journal = &host.volumes.state().journal;
        assert_eq!(journal.last().unwrap().op, expected);
    }
    client.call(1, fua, 0, 512, &[1; 512]);
    assert_eq!(
        host.volumes.state().journal.last().unwrap().op,
        VolumeOp::Write { durable: true }
    );
    let before = host.volumes.state().journal.len();
    for (command, flags, offset, len, errno) in [
        (0, 0, SIZE as u64, 512, 22),
        (0, 0, 1, 512, 22),
        (0, 4, 0, CELL_LEN + 512, 75),
        (4, 0, SIZE as u64, 512, 22),
        (6, 0, SIZE as u64, 512, 28),
        (6, no_hole | fast, 0, 512, 95),
        (12, 0, 0, 0, 22),
        (5, 0, 0, 4096, 0),
        (0, 0, 0, 0, 0),
        (6, 0, 0, 0, 0),
    ] {
        let answer = client.call(command, flags, offset, len, &[]);
        assert_eq!(answer.errno, errno, "{command} {flags} {offset} {len}");
    }
    assert_eq!(client.call(1, 0, SIZE as u64, 1024, &[0; 1024]).errno, 28);
    assert_eq!(client.call(1, 0, 0, 100, &[0; 100]).errno, 22);
    assert_eq!(client.call(1, 8, 0, 200_192, &vec![0; 200_192]).errno, 22);
    assert_eq!(
        host.volumes.state().journal.len(),
        before,
        "none of these reached the volume"
    );
    assert_eq!(client.read(0, 512), [1; 512], "the connection is sound");
}

#[test]
fn the_volumes_errors_are_answered_and_nothing_else_is_lost() {
    for replies in BOTH {
        let host = Host::new();
        let mut client = Client::connect(&host, replies);
        for (code, errno) in [
            (ErrorCode::Io, 5),
            (ErrorCode::SyncFailed, 5),
            (ErrorCode::NoSpace, 28),
            (ErrorCode::ReadOnly, 1),
            (ErrorCode::Stale, 108),
            (ErrorCode::NoMemory, 12),
        ] {
            host.volumes.state().fail = Some(code);
            assert_eq!(client.call(0, 0, 0, 3 * CELL_LEN, &[]).errno, errno);
            assert_eq!(client.call(1, 0, 0, 512, &[0; 512]).errno, errno);
            assert_eq!(client.call(3, 0, 0, 0, &[]).errno, errno);
            host.volumes.state().fail = None;
            assert_eq!(client.read(0, 512), [0; 512]);
        }
        assert_eq!(host.status().errors, 18);
    }
}

#[test]
fn answers_come_in_any_order_and_chunks_of_several_reads_mix() {
    let host = Host::new();
    host.volumes.state().hold = true;
    let mut client = Client::connect(&host, Replies::Structured);
    let first = client.send(0, 0, 0, 2 * CELL_LEN, &[]);
    let second = client.send(0, 0, 4096, 4096, &[]);
    eventually("all of it in the volume", || {
        host.volumes.state().held.len() == 3
    });
    host.volumes.state().release(2);
    assert_eq!(client.receive().0, second);
    host.volumes.state().release(1);
    host.volumes.state().release(0);
    let (cookie, answer) = client.receive();
    assert_eq!((cookie, answer.chunks), (first, 2));
    assert_eq!(answer.bytes().len(), 2 * CELL_LEN as usize);
}

#[test]
fn a_volume_that_refuses_for_now_is_asked_again_in_order() {
    let host = Host::new();
    host.volumes.state().credits = Some(0);
    let mut client = Client::connect(&host, Replies::Structured);
    for index in 0..20_u8 {
        client.send(1, 0, u64::from(index) * 512, 512, &[index; 512]);
    }
    eventually("a refusal", || host.status().volume_refusals > 0);
    host.volumes.state().credits = None;
    for _ in 0..20 {
        assert_eq!(client.receive().1.errno, 0);
    }
    for index in 0..20_u8 {
        assert_eq!(client.read(u64::from(index) * 512, 512), [index; 512]);
    }
}

#[test]
fn holes_and_data_are_told_apart() {
    let host = Host::new();
    let mut client = Client::connect(&host, Replies::Structured);
    client.write(1 << 20, &[1; 8192]);
    let whole = u32::try_from(SIZE).unwrap();
    let answer = client.call(7, 0, 0, whole, &[]);
    let rest = whole - (1 << 20) - 8192;
    assert_eq!(answer.extents, [(1 << 20, 3), (8192, 0), (rest, 3)]);
    let one = client.call(7, 8, 1 << 20, whole - (1 << 20), &[]);
    assert_eq!(one.extents, [(8192, 0)]);
    assert_eq!(client.call(7, 0, 0, 0, &[]).errno, 22);
    host.volumes.state().fail = Some(ErrorCode::Io);
    assert_eq!(client.call(7, 0, 0, whole, &[]).errno, 5);
    let mut simple = Client::connect(&host, Replies::Simple);
    assert_eq!(simple.call(7, 0, 0, 4096, &[]).errno, 22, "not asked for");
}

#[test]
fn a_flush_on_one_connection_covers_what_was_answered_on_another() {
    let host = Host::new();
    let mut clients: Vec<Client> = (0..4)
        .map(|_| Client::connect(&host, Replies::Structured))
        .collect();
    clients[0].write(0, &[1; 512]);
    clients[1].write(512, &[2; 512]);
    assert_eq!(clients[3].call(3, 0, 0, 0, &[]).errno, 0);
    let state = host.volumes.state();
    let ops: Vec<VolumeOp> = state.journal.iter().map(|it| it.op).collect();
    let write = VolumeOp::Write { durable: false };
    assert_eq!(ops, [write, write, VolumeOp::Flush]);
    assert_eq!(state.opens, 1, "one handle for all of them");
}

#[test]
fn a_loss_that_one_connection_hears_of_is_told_to_each_of_the_others_once() {
    let host = Host::new();
    let mut clients: Vec<Client> = (0..3)
        .map(|_| Client::connect(&host, Replies::Structured))
        .collect();
    for client in &mut clients {
        client.write(0, &[1; 512]);
    }
    host.volumes.state().fail = Some(ErrorCode::SyncFailed);
    assert_eq!(clients[0].call(3, 0, 0, 0, &[]).errno, 5);
    host.volumes.state().fail = None;
    assert_eq!(clients[1].call(3, 0, 0, 0, &[]).errno, 5);
    assert_eq!(clients[2].call(1, 0, 0, 512, &[2; 512]).errno, 0);
    assert_eq!(clients[2].call(1, 1, 0, 512, &[2; 512]).errno, 5, "FUA");
    clients.push(Client::connect(&host, Replies::Structured));
    for client in &mut clients {
        assert_eq!(client.call(3, 0, 0, 0, &[]).errno, 0, "told once");
    }
}

#[test]
fn a_read_only_export_refuses_writes() {
    let host = Host::with(|config| config.volume.read_only = true);
    let mut client = Client::connect(&host, Replies::Structured);
    assert_eq!(client.call(1, 0, 0, 512, &[1; 512]).errno, 1);
    assert_eq!(client.call(4, 0, 0, 512, &[]).errno, 1);
    assert_eq!(client.call(6, 0, 0, 512, &[]).errno, 1);
    assert_eq!(client.call(3, 0, 0, 0, &[]).errno, 0);
    assert_eq!(client.read(0, 512), [0; 512]);
}
