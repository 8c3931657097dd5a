//! Nodes with one data thread and with several, under the same load, by turns in rotating order; medians and spread.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::compare::REQUEST_LEN_MAX;
use archipelago_bench::disk::{Disk, Op};
use archipelago_bench::load::{self, Random, Workload};
use archipelago_bench::server::usage_of;
use archipelago_bench::waiting::now;
use archipelago_crash_tests::node::Node;
use clap::ValueEnum;

use crate::thread_times::thread_times;

/// Bytes of a request.
const REQUEST_LEN: usize = 4096;
/// A polling client looks at the clock after this many looks at its ring.
const LOOKS: u32 = 64;

/// How a client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Waiting {
    /// It sleeps until the device interrupts it.
    Sleep,
    /// It looks at its ring all the time, and the device sends no interrupts.
    Poll,
}

/// The load of each volume.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Requests in flight.
    pub depth: usize,
    /// Reads or writes.
    pub op: Op,
    /// How its client waits.
    pub waiting: Waiting,
    /// How long it runs.
    pub time: Duration,
}

/// A node with some data threads, and its volumes.
#[derive(Debug)]
pub struct Contestant {
    node: Node,
    threads: usize,
    sockets: Vec<PathBuf>,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Requests a second, of all volumes.
    rate: f64,
    /// CPU time of the data process, in microseconds per request.
    server_us: f64,
    /// The same of the clients.
    client_us: f64,
    /// Share of the time for which each data thread ran, on average.
    busy: f64,
}

impl Contestant {
    /// Starts `daemon` with `threads` data threads and `volumes` volumes of `size` bytes, each of them written once in full.
    ///
    /// # Errors
    /// If the node refuses, or does not spread the volumes.
    pub fn start(daemon: &str, threads: usize, volumes: usize, size: usize) -> Result<Contestant> {
        let node = Node::builder("fused").threads(threads).program(daemon);
        let node = node.start()?;
        let mut sockets = Vec::new();
        for number in 0..volumes {
            let socket = node.create(&format!("volume-{number}"), size)?;
            load::fill(
                &mut Disk::connect(&socket, 1, REQUEST_LEN_MAX)?,
                REQUEST_LEN_MAX,
            )?;
            sockets.push(socket);
        }
        Ok(Contestant {
            node,
            threads,
            sockets,
        })
    }

    /// The data process.
    ///
    /// # Errors
    /// If the node does not run.
    pub fn pid(&self) -> Result<i32> {
        Ok(self.node.process_of("endpoint")?.as_raw())
    }

    fn measure(&self, load: Load, seed: u64) -> Result<Sample> {
        let pid = self.pid()?;
        let clients = || Ok::<_, anyhow::Error>(usage_of(&[std::process::id()])?.cpu);
        let disks = self.sockets.iter().map(|socket| connect(socket, load));
        let disks = disks.collect::<Result<Vec<Disk>>>()?;
        let before = thread_times(pid)?;
        let clients_before = clients()?;
        let began = now();
        let requests: u64 = std::thread::scope(|scope| {
            let start = |(number, disk)| scope.spawn(move || run(disk, load, seed + number));
            let clients: Vec<_> = (0..).zip(disks).map(start).collect();
            let ends = clients.into_iter().map(std::thread::ScopedJoinHandle::join);
            ends.map(|end| end.expect("a client does not panic"))
                .sum::<Result<u64>>()
        })?;
        let took = now().duration_since(began).as_secs_f64();
        let clients = clients()?.saturating_sub(clients_before);
        let mut used: Vec<f64> = Vec::new();
        for (id, (_, after)) in thread_times(pid)? {
            let before = before.get(&id).map_or(Duration::ZERO, |(_, time)| *time);
            used.push(after.saturating_sub(before).as_secs_f64());
        }
        // Data threads are those that ran most: no other one serves requests.
        used.sort_by(|one, other| other.total_cmp(one));
        let server: f64 = used.iter().sum();
        let busiest: f64 = used.iter().take(self.threads).sum();
        let per_request = |seconds: f64| seconds * 1e6 / figure(requests).max(1.0);
        Ok(Sample {
            rate: figure(requests) / took,
            server_us: per_request(server),
            client_us: per_request(clients.as_secs_f64()),
            busy: busiest / took / figure(self.threads as u64),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn figure(number: u64) -> f64 {
    number as f64
}

fn connect(socket: &Path, load: Load) -> Result<Disk> {
    Disk::connect(socket, load.depth, REQUEST_LEN)
}

/// Requests that a client has had done.
fn run(mut disk: Disk, load: Load, seed: u64) -> Result<u64> {
    match load.waiting {
        Waiting::Sleep => {
            let workload = Workload {
                name: "null",
                op: load.op,
                depth: load.depth,
                len: REQUEST_LEN,
                random: true,
                flush: false,
            };
            Ok(load::run(&mut disk, workload, load.time, seed)?.requests)
        }
        Waiting::Poll => poll(&mut disk, load, seed),
    }
}

fn poll(disk: &mut Disk, load: Load, seed: u64) -> Result<u64> {
    let places = disk.capacity() / REQUEST_LEN as u64;
    let mut random = Random::new(seed);
    let mut next_offset = || random.below(places) * REQUEST_LEN as u64;
    for slot in 0..load.depth {
        disk.submit(slot, load.op, next_offset(), REQUEST_LEN)?;
    }
    disk.kick()?;
    let (mut requests, mut in_flight) = (0, load.depth);
    let end = now() + load.time;
    let (mut looks, mut over) = (0_u32, false);
    while in_flight > 0 {
        let mut progress = false;
        while let Some(done) = disk.next_done() {
            ensure!(done.result == 0, "a request failed with {}", done.result);
            requests += 1;
            if over {
                in_flight -= 1;
            } else {
                progress = true;
                disk.submit(done.slot, load.op, next_offset(), REQUEST_LEN)?;
            }
        }
        if progress {
            disk.kick()?;
        }
        looks += 1;
        if looks % LOOKS == 0 {
            over = now() >= end;
        }
    }
    Ok(requests)
}

/// Median, lowest and highest.
struct Spread([f64; 3]);

impl Spread {
    fn of(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> Spread {
        let mut values: Vec<f64> = samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or_default();
        let last = values.len().saturating_sub(1);
        Spread([at(last / 2), at(0), at(last)])
    }

    fn text(&self, decimals: usize) -> String {
        let [median, low, high] = self.0;
        format!("{median:.decimals$} ({low:.decimals$}..{high:.decimals$})")
    }
}

/// Measures all contestants `rounds` times, relative to the first one; a Markdown table.
///
/// # Errors
/// If a request fails, or a node has ended.
pub fn run_all(
    contestants: &[Contestant],
    load: Load,
    rounds: usize,
    progress: &mut dyn FnMut(&str),
) -> Result<String> {
    let mut samples = vec![Vec::with_capacity(rounds); contestants.len()];
    for round in 0..rounds {
        for turn in 0..contestants.len() {
            let index = (turn + round) % contestants.len();
            let sample = contestants[index].measure(load, round as u64)?;
            progress(&format!(
                "round {}, {} threads: {:.0}/s, CPU {:.2} us of the server, {:.2} of the clients",
                round + 1,
                contestants[index].threads,
                sample.rate,
                sample.server_us,
                sample.client_us
            ));
            samples[index].push(sample);
        }
    }
    let first = samples.first().context("nothing is to be measured")?;
    let mut text = "| data threads | requests a second | of the first | CPU us per request, server | clients | a data thread runs |\n\
                    |--:|--:|--:|--:|--:|--:|\n"
        .to_owned();
    for (contestant, own) in contestants.iter().zip(&samples) {
        let mut ratios: Vec<f64> = own
            .iter()
            .zip(first)
            .map(|(own, first)| own.rate / first.rate)
            .collect();
        ratios.sort_by(f64::total_cmp);
        let ratio = ratios.get(rounds.saturating_sub(1) / 2).copied();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {} | {} | {} |",
            contestant.threads,
            Spread::of(own, |sample| sample.rate).text(0),
            ratio.unwrap_or_default(),
            Spread::of(own, |sample| sample.server_us).text(2),
            Spread::of(own, |sample| sample.client_us).text(2),
            Spread::of(own, |sample| sample.busy).text(2),
        );
    }
    Ok(text)
}
