#!/usr/bin/env bash
# `make test`: everything a release needs. Runs all stages, says how long each took, and at the end what failed and how to replay it.
set -uo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/logs"
target=$(realpath "$target")
export ARCHIPELAGO_BIN_DIR=$target/release
# Tests say how to replay a failure; traces of panics that tests expect would hide it.
export RUST_BACKTRACE=0
# On a build machine everything is compiled once: no state for a next build, and no line tables.
if [ -n "${CI:-}" ]; then
    export CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_RELEASE_DEBUG=0
fi

# Runs the command of the stage $1. What it prints goes to its log, which is shown whole at its end: other stages run beside it.
stage() {
    local name=$1 log=$target/logs/$1.log began=$SECONDS cpu_began code=0 outcome=passed
    shift
    printf '\n==== %s: %s\n' "$name" "$*"
    cpu_seconds && cpu_began=$REPLY
    "$@" > "$log" 2>&1 || code=$?
    cpu_seconds
    if [ "$code" -ne 0 ]; then
        outcome=FAILED
        printf '%s: %s\n' "$name" "$*" > "$log.failed"
    fi
    {
        flock 9
        printf '\n==== %s has printed:\n' "$name"
        cat "$log"
        printf '==== %s: %s, %d s, %d s of CPU (total %d s)\n' "$name" "$outcome" $((SECONDS - began)) $((REPLY - cpu_began)) "$SECONDS"
    } 9> "$target/logs/.printing"
}

# Sets REPLY to the seconds of CPU that the ended children of this shell have used: proc_pid_stat(5), cutime and cstime in ticks of 10 ms.
# Daemons that go on in the background are nobody's children, and not counted.
cpu_seconds() {
    local -a fields
    read -ra fields < "/proc/$BASHPID/stat"
    REPLY=$(((fields[15] + fields[16]) / 100))
}

# Runs lanes beside each other: functions, each of which runs its stages one after another.
lanes() {
    local lane
    # Each is a process group of its own, so that it can be ended with this run.
    set -m
    lane_pids=()
    trap end_lanes EXIT
    for lane in "$@"; do
        "$lane" &
        lane_pids+=($!)
    done
    set +m
    wait "${lane_pids[@]}"
    trap - EXIT
}

end_lanes() {
    local pid
    for pid in "${lane_pids[@]}"; do kill -- "-$pid" 2> /dev/null; done
}

# What the failed stage $1 reported: some records keep only the last lines of a long run.
excerpt() {
    local log=$target/logs/$1.log
    printf '\n==== %s, of %s:\n' "$1" "$log"
    grep --extended-regexp --after-context=8 '^(failed: |Error: |error(\[|: )|tidy: )|(\.\.\.|:) FAILED' "$log" | cut --characters=-600 | head -n 50
    grep --after-context=2 'panicked at' "$log" | cut --characters=-600 | tail -n 20
}

# loom replaces the atomics of the whole build: a target folder of its own.
loom() {
    RUSTFLAGS='--cfg loom' CARGO_TARGET_DIR=$target/loom nice cargo test --package xseg --release --lib model::
}

rm -f "$target"/logs/*.failed
stage packages tests/install/packages.sh
# `archipelago-crash-tests` is among the packages of a stage for its features alone: with other features in its packages, Cargo would compile
# the dependencies of that stage once more.
stage release-build cargo build --release --quiet --package archipelago-crash-tests --package archipelago-node --package archipelago-cli --package archipelago-fuse --package archipelago-nbd-tcp --package archipelago-ganeti --package archipelago-rados
stage guest-parts tests/vm/guest/build.sh

# What computes, at a lower priority than what waits for processes, disks and guests.
computation() {
    stage check nice tests/check.sh
    # Not a release build: sums that overflow and broken assertions of our own shall be seen.
    stage fuzz-replay nice cargo test --no-fail-fast --workspace --test replay
    stage simulation nice cargo test --release --package archipelago-crash-tests --package archipelago-simulation --package archipelago-mapper --lib --test crashes --test flips --test nodes --test mapper -- --nocapture
    # A few ways to break the protocol, each noticed; all of them: tests/soak.sh. Unbroken, their tests have passed above.
    stage mutants nice cargo run --release --quiet --package archipelago-mutants -- --quick --trusted
    stage loom loom
}

nodes() {
    stage crash cargo test --release --no-fail-fast --package archipelago-crash-tests -- --nocapture
    stage endpoints cargo test --release --no-fail-fast --package archipelago-endpoint-tests -- --nocapture
    stage whole-system cargo test --release --no-fail-fast --package archipelago-host --package archipelago-cli --package archipelago-ganeti --package archipelago-segment --package archipelago-vhost-user --package archipelago-nbd --package archipelago-nbd-tcp --test '*'
    stage faults cargo test --release --package archipelago-fault-tests -- --nocapture
}

# Two clusters at a time: each emulated processor takes a core.
clusters() {
    stage ceph cargo test --release --no-fail-fast --package librados-sys --package archipelago-blocker-rados --package archipelago-rados
    stage ganeti cargo test --release --no-fail-fast --package archipelago-ganeti-tests -- --nocapture --test-threads 2
}

# Two guests at a time, as above. Not beside the other lanes: they have work for both cores, and a guest that gets no time for a minute counts as stalled.
guests() {
    stage virtual-machines cargo test --release --no-fail-fast --package archipelago-vm-tests -- --test-threads 2
}

power_cuts() {
    stage power-cut cargo test --release --no-fail-fast --package archipelago-power-cut-tests -- --nocapture
}

lanes computation nodes clusters
lanes guests power_cuts

failed=()
for log in "$target"/logs/*.log.failed; do
    [ ! -e "$log" ] || failed+=("$(basename "$log" .log.failed)")
done
if [ ${#failed[@]} -gt 0 ]; then
    for name in "${failed[@]}"; do excerpt "$name"; done
    printf '\ntest: %d stages failed in %d s; each runs alone (seeds are printed above, programs: export ARCHIPELAGO_BIN_DIR=%s):\n' \
        ${#failed[@]} "$SECONDS" "$ARCHIPELAGO_BIN_DIR"
    for name in "${failed[@]}"; do printf '  %s\n' "$(< "$target/logs/$name.log.failed")"; done
    exit 1
fi
printf '\ntest: all stages passed in %d s\n' "$SECONDS"
