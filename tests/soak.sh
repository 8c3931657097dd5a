#!/usr/bin/env bash
# `make soak`: the crash tests over and over with new seeds, for $MINUTES (default 60). Stops at the first failure, whose seed it prints.
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
