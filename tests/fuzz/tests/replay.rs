//! Seeds, regressions and mutations of them, without libFuzzer.
//!
//! `FUZZ_ROUNDS=10` does ten times as many mutations, `FUZZ_SEED=7` others, `FUZZ_INPUT=file` one input alone.

#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "an integration test is all test"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use archipelago_fuzz_tests::mutate::{Random, mutate};
use archipelago_fuzz_tests::{INPUT_LEN_MAX, TARGETS, Target, seeds, target};

fn number(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Where mutation begins: encodings of real structures, and inputs that have failed once. With what each is called.
fn inputs(target: &Target) -> Vec<(String, Vec<u8>)> {
    let seeds = seeds::of(target.name).into_iter().enumerate();
    let seeds = seeds.map(|(number, bytes)| (format!("seed {number}"), bytes));
    seeds.chain(regressions(target)).collect()
}

fn regressions(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("regressions")
        .join(target.name);
    if !folder.exists() {
        return Vec::new();
    }
    let listed = std::fs::read_dir(&folder).unwrap();
    let mut files: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |path: PathBuf| (path.display().to_string(), std::fs::read(&path).unwrap());
    files.into_iter().map(read).collect()
}

/// Runs one input; a failure leaves it in a file and says how to replay it.
fn run(target: &Target, bytes: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))).is_ok() {
        return;
    }
    let file = std::env::temp_dir().join(format!("fuzz-{}-{}", target.name, blake3::hash(bytes)));
    std::fs::write(&file, bytes).unwrap();
    panic!(
        "{what} of target {name} fails; replay: FUZZ_INPUT={file} cargo test -p archipelago-fuzz-tests --test replay {test}",
        name = target.name,
        file = file.display(),
        test = target.name.replace('-', "_"),
    );
}

fn check(name: &str) {
    let target = target(name).unwrap();
    if let Some(file) = std::env::var_os("FUZZ_INPUT") {
        return run(target, &std::fs::read(file).unwrap(), "the input");
    }
    let inputs = inputs(target);
    assert!(!inputs.is_empty(), "{name} has seeds");
    for (what, bytes) in &inputs {
        run(target, bytes, what);
    }
    run(target, &[], "the empty input");
    let seed = number("FUZZ_SEED", 1);
    let mut random = Random::new(seed);
    let pick = |random: &mut Random| &inputs[random.below(inputs.len())].1;
    for round in 0..target.rounds * number("FUZZ_ROUNDS", 1) {
        let mut bytes = pick(&mut random).clone();
        let other = pick(&mut random);
        mutate(&mut random, &mut bytes, other, INPUT_LEN_MAX);
        run(
            target,
            &bytes,
            &format!("mutation {round} with FUZZ_SEED={seed}"),
        );
    }
}

macro_rules! replays {
    ($($test:ident => $name:literal;)*) => {
        $(#[test]
        fn $test() {
            check($name);
        })*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$($name),*];
            let all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(all, replayed);
        }
    };
}

replays! {
    chain => "chain";
    device => "device";
    front_end => "front-end";
    nbd_handshake => "nbd-handshake";
    nbd_connection => "nbd-connection";
    channel_message => "channel-message";
    server_port => "server-port";
    client_port => "client-port";
    volume_head => "volume-head";
    catalogue_head => "catalogue-head";
    log_scan => "log-scan";
    log_records => "log-records";
    map_page => "map-page";
    catalogue_records => "catalogue-records";
    catalogue_page => "catalogue-page";
    journal => "journal";
    slots => "slots";
    config => "config";
    map_entry => "map-entry";
    status_page => "status-page";
    object_entry => "object-entry";
    control_json => "control-json";
    blocker => "blocker";
    mapper => "mapper";
}

#[test]
fn every_regression_belongs_to_a_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name();
        let name = name.to_str().unwrap();
        let found = target(name).unwrap_or_else(|| panic!("there is no target {name}"));
        assert!(!regressions(found).is_empty(), "{name} has regressions");
    }
}
