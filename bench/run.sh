#!/usr/bin/env bash
# `make bench`: builds, then compares both placements with qemu-storage-daemon in one run. Options go to archipelago-bench; `nbd` compares with qemu-nbd,
# `fuse` with the FUSE export of qemu-storage-daemon. What stands first: `rados` compares with RBD on a cluster of its own, `null` compares data threads on
# storage that costs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/install/packages.sh
target=${CARGO_TARGET_DIR:-target}
if [ "${1:-}" = rados ]; then
    shift
    cargo build --release --quiet --package archipelago-bench-rados --package archipelago-node --package archipelago-cli --package archipelago-rados
    exec "$target/release/archipelago-bench-rados" "$@"
fi
if [ "${1:-}" = null ]; then
    shift
    cargo build --release --quiet --package archipelago-bench-null --package archipelago-cli
    exec "$target/release/archipelago-bench-null" "$@"
fi
cargo build --release --quiet --package archipelago-bench --package archipelago-node --package archipelago-cli --package archipelago-fuse
exec "$target/release/archipelago-bench" "$@"
