//! A pool of many volumes: how long its start, a page of a listing and making a volume take, and what that costs a guest.
//!
//! The guest reads at queue depth 32. Its latency is measured alone, then while volumes are made in a catalogue that is almost empty, then
//! in the full one: enough of them that the catalogue is stored anew meanwhile.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_api::client::{Client, Method};
use archipelago_api::types::{CreateVolume, VolumePage, VolumeView};
use archipelago_protocol::Labels;

use crate::compare::connect;
use crate::disk::Disk;
use crate::load::{self, Figures, RR32};
use crate::server::{Archipelago, Server, usage_of};
use crate::waiting::now;

/// The goals.
const START_MAX: Duration = Duration::from_secs(2);
const CALL_MAX: Duration = Duration::from_millis(10);
const P999_GROWTH_US_MAX: f64 = 1000.0;
/// Requests at a time while the pool is filled.
const FILLERS: usize = 4;
/// Volumes that are made beside the guest, in each round: the catalogue's log has room for a thousand.
const MADE_BESIDE: usize = 600;
/// Pages that are listed, from places all over the names.
const PAGES: usize = 50;
const VOLUME_LEN: u64 = 1 << 20;

/// How long calls took.
struct Calls(Vec<Duration>);

impl Calls {
    fn at(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or_default()
    }

    fn text(&self) -> String {
        let ms = |percent| self.at(percent).as_secs_f64() * 1e3;
        format!("{:.2} ms, p99 {:.2}, most {:.2}", ms(50), ms(99), ms(100))
    }
}

/// The call's answer, and how long it took.
fn timed<T>(call: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let began = now();
    let answer = call()?;
    Ok((answer, now().duration_since(began)))
}

fn create(client: &Client, name: &str) -> Result<Duration> {
    let request = CreateVolume {
        name: name.parse()?,
        size: VOLUME_LEN,
        pool: None,
        object_size: None,
        on_full: None,
        labels: Labels::default(),
    };
    let call = || -> Result<VolumeView> { Ok(client.call(Method::Post, "/v1/volumes", &request)?) };
    Ok(timed(call)?.1)
}

/// Makes volumes until there are `entries` of them.
fn fill(client: &Client, entries: usize) -> Result<()> {
    let make = |first: usize| -> Result<()> {
        for number in (first..entries).step_by(FILLERS) {
            create(client, &format!("many-{number:07}"))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let fillers: Vec<_> = (0..FILLERS)
            .map(|first| scope.spawn(move || make(first)))
            .collect();
        let mut ends = fillers.into_iter().map(std::thread::ScopedJoinHandle::join);
        ends.try_for_each(|end| end.expect("a filler does not panic"))
    })
}

fn list(client: &Client, entries: usize) -> Result<Calls> {
    let mut calls = Calls(Vec::new());
    for page in 0..PAGES {
        let after = format!("many-{:07}", entries * page / PAGES);
        let path = format!("/v1/volumes?after={after}&limit=1000");
        let (found, took) = timed(|| -> Result<VolumePage> { Ok(client.get(&path)?) })?;
        let expected = (entries - entries * page / PAGES - 1).min(1000);
        ensure!(
            found.volumes.len() >= expected,
            "a page of {} names",
            found.volumes.len()
        );
        calls.0.push(took);
    }
    Ok(calls)
}

/// What a guest sees while volumes are made, and how long each takes.
fn beside(
    disk: &mut Disk,
    client: &Client,
    name: &str,
    time: Duration,
) -> Result<(Figures, Calls)> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let maker = scope.spawn(|| -> Result<Calls> {
            let mut calls = Calls(Vec::new());
            for number in 0..MADE_BESIDE {
                calls.0.push(create(client, &format!("{name}-{number}"))?);
            }
            done.store(true, Ordering::Relaxed);
            Ok(calls)
        });
        // The worst of as many runs as there are until the maker has ended.
        let mut worst: Option<Figures> = None;
        let mut seed = 1;
        while !done.load(Ordering::Relaxed) && !maker.is_finished() {
            seed += 1;
            let figures = load::run(disk, RR32, time, seed)?;
            if worst.is_none_or(|worst| figures.p999_us > worst.p999_us) {
                worst = Some(figures);
            }
        }
        let calls = maker.join().expect("the maker does not panic")?;
        Ok((worst.context("the maker was too fast")?, calls))
    })
}

/// The worst of `rounds` runs without anything beside.
fn alone(disk: &mut Disk, rounds: usize, time: Duration) -> Result<Figures> {
    let mut worst: Option<Figures> = None;
    for seed in 0..rounds as u64 {
        let figures = load::run(disk, RR32, time, seed)?;
        if worst.is_none_or(|worst| figures.p999_us > worst.p999_us) {
            worst = Some(figures);
        }
    }
    worst.context("no round is to be measured")
}

/// Measures with `entries` volumes; a Markdown table.
///
/// # Errors
/// If the node refuses, or a request fails.
pub fn run(
    server: &mut Archipelago,
    entries: usize,
    rounds: usize,
    time: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<String> {
    let client = server.client()?;
    let mut text = String::new();
    let mut row = |what: &str, figure: String, ok: bool| {
        let missed = if ok { "" } else { " (goal missed)" };
        progress(&format!("{what}: {figure}{missed}"));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {what} | {figure}{missed} |");
    };
    let mut disk = connect(&server.filled()?)?;
    let before = alone(&mut disk, rounds, time)?;
    let guest =
        |figures: Figures| format!("p99.9 {:.0} us, {:.0}/s", figures.p999_us, figures.iops);
    row("a guest alone, rr32", guest(before), true);
    let (few, calls) = beside(&mut disk, &client, "first", time)?;
    row("a volume is made, few in the catalogue", calls.text(), true);
    row("the guest meanwhile", guest(few), true);
    drop(disk);
    let ((), took) = timed(|| fill(&client, entries))?;
    let each = took.as_secs_f64() * 1e3 / entries.max(1) as f64;
    row(
        "filling",
        format!("{entries} volumes, {each:.2} ms each"),
        true,
    );
    server.release()?;
    let ((), started) = timed(|| server.start())?;
    row(
        "a start",
        format!("{:.2} s", started.as_secs_f64()),
        started <= START_MAX,
    );
    let rss = usage_of(&server.pids()?)?.rss_kib >> 10;
    row("memory of the node's processes", format!("{rss} MiB"), true);
    let pages = list(&client, entries)?;
    row(
        "a page of 1000 names",
        pages.text(),
        pages.at(100) <= CALL_MAX,
    );
    let mut disk = connect(&server.filled()?)?;
    let before = alone(&mut disk, rounds, time)?;
    row("a guest alone, rr32", guest(before), true);
    let (many, calls) = beside(&mut disk, &client, "last", time)?;
    row("a volume is made", calls.text(), calls.at(100) <= CALL_MAX);
    let grown = many.p999_us - before.p999_us;
    row(
        "the guest meanwhile",
        guest(many),
        grown <= P999_GROWTH_US_MAX,
    );
    Ok(format!(
        "| {}, {entries} volumes | |\n|---|---|\n{text}",
        server.name()
    ))
}
