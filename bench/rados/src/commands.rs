//! Commands: create, snapshot, clone, remove. Ours by the node's API, RBD's by its Python binding; each side's connection to the cluster is
//! open before.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use archipelago_api::client::{Client, Method};
use archipelago_api::layout::Layout;
use archipelago_bench::program::stdout_of;
use archipelago_bench::waiting::now;
use serde_json::{Value, json};

use crate::own::Own;
use crate::rbd::{Images, POOL};

/// What is done, in order, on either side.
const STEPS: [&str; 6] = [
    "create 10 GiB",
    "snapshot",
    "clone",
    "remove the clone",
    "remove the snapshot",
    "remove the volume",
];
/// How often in one round.
const REPEATS: usize = 10;
/// Bytes of the volume.
const SIZE: u64 = 10 << 30;
/// Does the steps so often, and prints the milliseconds of each as one list of JSON.
const RBD: &str = include_str!("commands.py");
/// Debian's: the bindings are for that one.
const PYTHON: &str = "/usr/bin/python3";

/// Milliseconds by step, of every repeat.
type Times = Vec<Vec<f64>>;

fn own_times(client: &Client) -> Result<Times> {
    let mut times = vec![Vec::new(); STEPS.len()];
    let (volume, snapshot, clone) = ("made", "made-base", "made-clone");
    let path = |name: &str, action: &str| format!("/v1/volumes/{name}{action}");
    for _ in 0..REPEATS {
        let steps: [(Method, String, Value); STEPS.len()] = [
            (
                Method::Post,
                "/v1/volumes".to_owned(),
                json!({"name": volume, "size": SIZE}),
            ),
            (
                Method::Post,
                path(volume, "/snapshot"),
                json!({"name": snapshot}),
            ),
            (
                Method::Post,
                path(snapshot, "/clone"),
                json!({"name": clone}),
            ),
            (Method::Delete, path(clone, ""), Value::Null),
            (Method::Delete, path(snapshot, ""), Value::Null),
            (Method::Delete, path(volume, ""), Value::Null),
        ];
        for (step, (method, path, body)) in times.iter_mut().zip(steps) {
            let began = now();
            client.call::<_, Value>(method, &path, &body)?;
            step.push(began.elapsed().as_secs_f64() * 1000.0);
        }
    }
    Ok(times)
}

fn rbd_times(images: &Images) -> Result<Times> {
    let mut python = Command::new(PYTHON);
    python.args(["-c", RBD]).arg(images.conf());
    python.args([POOL, &REPEATS.to_string(), &SIZE.to_string()]);
    let times: Times = serde_json::from_str(&stdout_of(&mut python)?)?;
    ensure!(times.len() == STEPS.len(), "{} steps", times.len());
    Ok(times)
}

/// Median, lowest and highest.
fn spread(mut values: Vec<f64>) -> Option<[f64; 3]> {
    values.sort_by(f64::total_cmp);
    let median = values.get(values.len() / 2)?;
    Some([*median, *values.first()?, *values.last()?])
}

/// Does all steps on both sides, by turns: the table as Markdown.
///
/// # Errors
/// If a command fails.
pub(crate) fn run(own: &Own, images: &Images, rounds: usize) -> Result<String> {
    let client = Client::new(Layout::new(Some(own.root()))?);
    let mut times = [vec![Vec::new(); STEPS.len()], vec![Vec::new(); STEPS.len()]];
    for round in 0..rounds {
        for turn in 0..2 {
            let side = (round + turn) % 2;
            let found = match side {
                0 => own_times(&client)?,
                _ => rbd_times(images)?,
            };
            for (all, found) in times[side].iter_mut().zip(found) {
                all.extend(found);
            }
        }
    }
    let mut text =
        "| command | archipelago ms (min..max) | rbd ms (min..max) | ratio |\n|---|--:|--:|--:|\n"
            .to_owned();
    let [ours, theirs] = times;
    for ((step, ours), theirs) in STEPS.iter().zip(ours).zip(theirs) {
        let ours = spread(ours).context("a time")?;
        let theirs = spread(theirs).context("a time")?;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {step} | {:.1} ({:.1}..{:.1}) | {:.1} ({:.1}..{:.1}) | {:.2} |",
            ours[0],
            ours[1],
            ours[2],
            theirs[0],
            theirs[1],
            theirs[2],
            ours[0] / theirs[0]
        );
    }
    Ok(text)
}
