#!/usr/bin/env bash
# `make soak`: kills of every process by the thousand, under verified load, and a million crash images after each round, with new seeds;
# then kills and power cuts under guests, Ganeti of another Debian, every mutant of the protocol, and libFuzzer on each target. Stops at the first failure, whose seed or
# input it prints, and says its rates.
#   CRASH_KILLS   signals in all (10000)
#   MINUTES       of kills and images, at most about so long (no limit)
#   CRASH_SEED    seed of the first round (the time)
#   SOAK_IMAGES   crash images of a round (1000000)
#   FULL_SECONDS  of a full pool under five guests, and of load at limits (60)
#   GUEST_KILLS   signals under QEMU guests, after the rounds (1000)
#   POWER_CUT_MARKS  power cuts under a guest's file systems, after the rounds (100000)
#   ENDPOINT_OPERATIONS  random operations over each way into a volume (1000000)
#   FUZZ_SECONDS  of each fuzz target (600)
#   GANETI_ROOT   where Debian 13 with its Ganeti 3.1 is, or is made (ganeti-3.1 beside the programs); needs root and mmdebstrap
set -euo pipefail
cd "$(dirname "$0")/.."
tests/install/packages.sh
cargo build --release --package archipelago-node --package archipelago-cli --package archipelago-fuse
target=$(realpath "${CARGO_TARGET_DIR:-target}")
export ARCHIPELAGO_BIN_DIR=$target/release

total=${CRASH_KILLS:-10000} seed=${CRASH_SEED:-$(date +%s)} done=0
end=$((SECONDS + ${MINUTES:-1000000} * 60)) began=$SECONDS
# Rounds, so that what replays a failure is short.
while [ "$done" -lt "$total" ] && [ "$SECONDS" -lt "$end" ]; do
    round=$((total - done < 500 ? total - done : 500))
    echo "== soak: CRASH_SEED=$seed CRASH_KILLS=$round"
    CRASH_SEED=$seed CRASH_KILLS=$round cargo test --release --package archipelago-crash-tests \
        --test kills --test stale_writers --test snapshots -- --nocapture
    done=$((done + round)) seed=$((seed + 1))
    echo "== soak: $done of $total kills, $((done * 60 / (SECONDS - began + 1))) a minute"
    simulated=$SECONDS images=${SOAK_IMAGES:-1000000}
    echo "== soak: simulation with FIRST_SEED=$seed"
    # The enumerated sequences interleave in other ways with every seed; then random ones.
    FIRST_SEED=$((seed * 100000)) IMAGES=$images cargo test --release --package archipelago-simulation every_short -- --nocapture
    echo "== soak: at least $((images / (SECONDS - simulated + 1))) crash images a second"
done

echo '== soak: every bit of the metadata of a small pool flipped'
FLIPS=all cargo test --release --package archipelago-simulation --test flips -- --nocapture

echo '== soak: control commands at every free space, five guests of a full pool, load at limits'
SWEEP=all GROWN_SECONDS=${FULL_SECONDS:-60} LIMITS_SECONDS=${FULL_SECONDS:-60} CRASH_SEED=$seed \
    cargo test --release --package archipelago-crash-tests --test sweep --test grown --test limits -- --nocapture --test-threads 1

echo '== soak: random operations over every way into a volume'
ENDPOINT_OPERATIONS=${ENDPOINT_OPERATIONS:-1000000} cargo test --release --package archipelago-endpoint-tests --test battery random -- --nocapture

echo "== soak: kills under guests with GUEST_KILLS_SEED=$seed"
GUEST_KILLS_SEED=$seed GUEST_KILLS=${GUEST_KILLS:-1000} cargo test --release --package archipelago-vm-tests --test kills -- --nocapture

echo "== soak: power cuts with POWER_CUT_SEED=$seed"
POWER_CUT_SEED=$seed POWER_CUT_MARKS=${POWER_CUT_MARKS:-100000} cargo test --release --package archipelago-power-cut-tests \
    --test power_cut survives -- --nocapture

if [ "$(id -u)" -eq 0 ] && command -v mmdebstrap >/dev/null; then
    GANETI_ROOT=$(realpath --canonicalize-missing "${GANETI_ROOT:-$target/ganeti-3.1}")
    export GANETI_ROOT
    echo "== soak: Ganeti 3.1 in $GANETI_ROOT"
    tests/ganeti/root.sh "$GANETI_ROOT"
    cargo build --release --package archipelago-nbd-tcp --package archipelago-ganeti
    cargo test --release --no-fail-fast --package archipelago-ganeti-tests -- --nocapture --test-threads 2
else
    echo '== soak: no Ganeti 3.1: it needs root and `apt-get install mmdebstrap`'
fi

echo '== soak: every mutant is noticed'
cargo run --release --package archipelago-mutants

echo '== soak: gaps in service with a hundred volumes'
cargo run --release --package archipelago-crash-tests --bin service-gaps

if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo '== soak: no fuzzing: it needs `rustup toolchain install nightly` and `cargo install cargo-fuzz`'
    exit 0
fi
SECONDS_EACH=${FUZZ_SECONDS:-600} tests/fuzz/fuzz.sh
