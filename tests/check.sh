#!/usr/bin/env bash
# `make check`: everything that needs no virtual machine and no long run. Runs all of it and reports every failure.
set -uo pipefail
cd "$(dirname "$0")/.."

failures=()
stage() {
    local name=$1 began=$SECONDS
    shift
    printf '== %s: %s\n' "$name" "$*"
    if "$@"; then
        printf '== %s: passed, %d s\n' "$name" $((SECONDS - began))
    else
        printf '== %s: FAILED, %d s\n' "$name" $((SECONDS - began))
        failures+=("$name: $*")
    fi
}

# What links librados is left out where that is not installed: without names, cargo means `default-members`.
crates=()
[ ! -e /usr/include/rados/librados.h ] || crates=(--workspace)

unit_tests() {
    cargo test "${crates[@]}" --lib --bins && cargo test "${crates[@]}" --doc
}

documentation() {
    RUSTDOCFLAGS='-D warnings' cargo doc "${crates[@]}" --no-deps --quiet
}

stage format cargo fmt --all --check
stage lints cargo clippy "${crates[@]}" --all-targets --quiet -- -D warnings
stage unit-tests unit_tests
stage documentation documentation
stage tidy tests/tidy.sh

if [ ${#failures[@]} -gt 0 ]; then
    echo "check: ${#failures[@]} failed; each runs alone:"
    printf '  %s\n' "${failures[@]}"
    exit 1
fi
echo "check: all passed"
