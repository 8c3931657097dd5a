#!/usr/bin/env bash
# `make bench`: builds, then compares both placements with qemu-storage-daemon in one run. Options go to archipelago-bench.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/install/packages.sh
cargo build --release --quiet --package archipelago-bench --package archipelago-node --package archipelago-cli
exec "${CARGO_TARGET_DIR:-target}/release/archipelago-bench" "$@"
