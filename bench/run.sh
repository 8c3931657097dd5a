#!/usr/bin/env bash
# `make bench`: builds, then compares both placements with qemu-storage-daemon in one run. Options go to archipelago-bench; `nbd` compares with qemu-nbd,
# `fuse` with the FUSE export of qemu-storage-daemon.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/install/packages.sh
cargo build --release --quiet --package archipelago-bench --package archipelago-node --package archipelago-cli --package archipelago-fuse
exec "${CARGO_TARGET_DIR:-target}/release/archipelago-bench" "$@"
