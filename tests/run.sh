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

failures=() failed=() beside_names=() beside_commands=()
stage() {
    local name=$1 began=$SECONDS cpu_began
    cpu_began=$(cpu $$)
    shift
    printf '\n==== %s: %s\n' "$name" "$*"
    # Nobody waits for `tee`: a process that a failed test has left behind may still hold its pipe.
    "$@" > >(tee "$target/logs/$name.log") 2>&1
    ended "$name" $? $((SECONDS - began)) $(($(cpu $$) - cpu_began)) "$*"
}

# Seconds of CPU that the ended children of the shell $1 have used: proc_pid_stat(5), cutime and cstime in ticks of 10 ms. Daemons that go on in the
# background are nobody's children, and not counted.
cpu() {
    awk '{ printf "%d", ($16 + $17) / 100 }' "/proc/$1/stat"
}

# The stage $1 has ended, with the exit code $2, after $3 seconds, $4 of CPU; its command was $5.
ended() {
    local result=passed
    if [ "$2" -ne 0 ]; then
        result=FAILED
        failures+=("$1: $5") failed+=("$1")
    fi
    printf '==== %s: %s, %d s, %d s of CPU (total %d s)\n' "$1" "$result" "$3" "$4" "$SECONDS"
}

# Adds a stage to those that run one after another beside the stages that follow, for what waits more than it computes. `begin` starts them,
# `meet` waits for them and shows what they have printed.
beside() {
    local command
    beside_names+=("$1")
    shift
    printf -v command '%q ' "$@"
    beside_commands+=("$command")
}

begin() {
    printf '\n==== beside the next stages: %s\n' "${beside_names[*]}"
    # A process group of its own, so that it can be ended with this run.
    set -m
    (
        shell=$BASHPID
        for index in "${!beside_names[@]}"; do
            log=$target/logs/${beside_names[index]}.log began=$SECONDS cpu_began=$(cpu "$shell")
            eval "${beside_commands[index]}" > "$log" 2>&1
            printf '%s %s %s' $? $((SECONDS - began)) $(($(cpu "$shell") - cpu_began)) > "$log.ended"
        done
    ) &
    beside_pid=$!
    set +m
    trap 'kill -- "-$beside_pid" 2> /dev/null' EXIT
}

meet() {
    wait "$beside_pid"
    trap - EXIT
    local index log code seconds cpu
    for index in "${!beside_names[@]}"; do
        log=$target/logs/${beside_names[index]}.log
        printf '\n==== %s, from beside the last stages: %s\n' "${beside_names[index]}" "${beside_commands[index]}"
        cat "$log"
        read -r code seconds cpu < "$log.ended"
        ended "${beside_names[index]}" "$code" "$seconds" "$cpu" "${beside_commands[index]}"
    done
    beside_names=() beside_commands=()
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

stage packages tests/install/packages.sh
stage release-build cargo build --release --quiet --package archipelago-node --package archipelago-cli --package archipelago-fuse --package archipelago-nbd-tcp --package archipelago-ganeti --package archipelago-rados
stage guest-parts tests/vm/guest/build.sh

# Beside each other: what computes, at a lower priority, and what waits for processes and disks.
beside crash cargo test --release --no-fail-fast --package archipelago-crash-tests -- --nocapture
beside endpoints cargo test --release --no-fail-fast --package archipelago-endpoint-tests -- --nocapture
# Two clusters at a time: each emulated processor takes a core.
beside ganeti cargo test --release --no-fail-fast --package archipelago-ganeti-tests -- --nocapture --test-threads 2
beside ceph cargo test --release --no-fail-fast --package librados-sys --package archipelago-blocker-rados --package archipelago-rados
begin
stage check nice tests/check.sh
# Not a release build: sums that overflow and broken assertions of our own shall be seen.
stage fuzz-replay nice cargo test --no-fail-fast --package archipelago-fuzz-tests --test replay
stage simulation nice cargo test --release --package archipelago-simulation --package archipelago-mapper -- --nocapture
# A few ways to break the protocol, each noticed; all of them: tests/soak.sh. Unbroken, their tests have passed above.
stage mutants nice cargo run --release --quiet --package archipelago-mutants -- --quick --trusted
stage loom loom
meet

beside faults cargo test --release --package archipelago-fault-tests -- --nocapture
begin
stage whole-system cargo test --release --no-fail-fast --package archipelago-host --package archipelago-cli --package archipelago-ganeti --package archipelago-segment --package archipelago-vhost-user --package archipelago-nbd --test '*'
meet

beside power-cut cargo test --release --no-fail-fast --package archipelago-power-cut-tests -- --nocapture
begin
# Two guests at a time, as above.
stage virtual-machines cargo test --release --no-fail-fast --package archipelago-vm-tests -- --test-threads 2
meet

if [ ${#failures[@]} -gt 0 ]; then
    for name in "${failed[@]}"; do excerpt "$name"; done
    printf '\ntest: %d stages failed in %d s; each runs alone (seeds are printed above, programs: export ARCHIPELAGO_BIN_DIR=%s):\n' \
        ${#failures[@]} "$SECONDS" "$ARCHIPELAGO_BIN_DIR"
    printf '  %s\n' "${failures[@]}"
    exit 1
fi
printf '\ntest: all stages passed in %d s\n' "$SECONDS"
