#!/usr/bin/env bash
# `make soak`: the crash tests over and over with new seeds, for $MINUTES (default 60); then libFuzzer for $FUZZ_SECONDS (default 600)
# on each target. Stops at the first failure and prints its seed, or the input.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/install/packages.sh
cargo build --release --package archipelago-node --package archipelago-cli
target=$(realpath "${CARGO_TARGET_DIR:-target}")
export ARCHIPELAGO_BIN_DIR=$target/release CRASH_KILLS=${CRASH_KILLS:-40}
end=$((SECONDS + ${MINUTES:-60} * 60)) seed=${CRASH_SEED:-$(date +%s)}
while [ "$SECONDS" -lt "$end" ]; do
    echo "== soak: CRASH_SEED=$seed CRASH_KILLS=$CRASH_KILLS"
    CRASH_SEED=$seed cargo test --release --package archipelago-crash-tests -- --nocapture
    seed=$((seed + 1))
done

if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo '== soak: no fuzzing: it needs `rustup toolchain install nightly` and `cargo install cargo-fuzz`'
    exit 0
fi
SECONDS_EACH=${FUZZ_SECONDS:-600} tests/fuzz/fuzz.sh
