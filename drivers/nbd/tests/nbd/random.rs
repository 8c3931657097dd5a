//! Random operations on several connections against a model: what is read is what was written last.

use std::collections::BTreeMap;

use crate::client::{Client, Replies};
use crate::host::{Host, SIZE};

/// Operations of one run.
const OPERATIONS: usize = 20_000;
/// Requests of one connection in flight at most.
const DEPTH: usize = 12;
/// The range that is used: small, so that requests overlap often.
const RANGE: u64 = 4 << 20;
const _: () = assert!(RANGE <= SIZE as u64);

/// Numbers from a seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A request that is not answered.
struct Pending {
    command: u16,
    start: u64,
    end: u64,
}

#[test]
fn what_is_read_is_what_was_written_last_whatever_the_order() {
    let seed = 0x5eed_0bd0_u64;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let host = Host::new();
    let mut model = vec![0_u8; usize::try_from(RANGE).unwrap()];
    let replies = [Replies::Structured, Replies::Simple, Replies::Structured];
    let mut clients: Vec<(Client, BTreeMap<u64, Pending>)> = replies
        .map(|replies| (Client::connect(&host, replies), BTreeMap::new()))
        .into_iter()
        .collect();
    let mut left = OPERATIONS;
    while left > 0 || clients.iter().any(|(_, pending)| !pending.is_empty()) {
        let which = usize::try_from(random.below(3)).unwrap();
        let asks = left > 0 && clients[which].1.len() < DEPTH && random.below(3) > 0;
        if !asks {
            receive(&mut clients[which], &model);
            continue;
        }
        let sectors = match random.below(8) {
            0 => 1 + random.below(1024),
            1..4 => 8 * (1 + random.below(4)),
            _ => 1 + random.below(16),
        };
        let start = random.below(RANGE / 512 - sectors) * 512;
        let end = start + sectors * 512;
        // Requests in flight are not ordered: only those that do not overlap, but for reads.
        let command = [0, 1, 1, 6, 4, 3][usize::try_from(random.below(6)).unwrap()];
        let overlaps = |other: &Pending| {
            (command != 0 || other.command != 0) && start < other.end && other.start < end
        };
        if clients
            .iter()
            .any(|(_, pending)| pending.values().any(overlaps))
        {
            receive(&mut clients[which], &model);
            continue;
        }
        left -= 1;
        let len = u32::try_from(end - start).unwrap();
        let range = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
        let mut data = Vec::new();
        match command {
            1 => {
                let value = random.below(255).to_le_bytes()[0];
                data = vec![value; range.len()];
                model[range].fill(value);
            }
            4 | 6 => model[range].fill(0),
            _ => {}
        }
        let (client, pending) = &mut clients[which];
        let cookie = match command {
            3 => client.send(3, 0, 0, 0, &[]),
            _ => client.send(
                command,
                u16::from(random.below(4) == 0 && command != 0),
                start,
                len,
                &data,
            ),
        };
        pending.insert(
            cookie,
            Pending {
                command,
                start,
                end,
            },
        );
    }
    assert_eq!(host.status().errors, 0);
    let usable = model.len();
    assert!(host.volumes.state().data[..usable] == model);
}

/// Takes the next answer, if one is to come.
fn receive((client, pending): &mut (Client, BTreeMap<u64, Pending>), model: &[u8]) {
    if pending.is_empty() {
        return;
    }
    let (cookie, answer) = client.receive();
    let request = pending.remove(&cookie).expect("asked for");
    assert_eq!(answer.errno, 0);
    if request.command == 0 {
        let range = usize::try_from(request.start).unwrap()..usize::try_from(request.end).unwrap();
        assert!(
            answer.bytes() == model[range],
            "{}..{}",
            request.start,
            request.end
        );
    }
}
