#!/usr/bin/env bash
# libFuzzer on each target for $SECONDS_EACH (default 600), or on those named: tests/fuzz/fuzz.sh chain mapper. Stops at the first
# failure and says where its input is; it belongs into tests/fuzz/regressions/TARGET when the bug is fixed. What is new goes to
# target/fuzz/corpus, where the next run goes on.
# Needs: rustup toolchain install nightly; cargo install cargo-fuzz.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(realpath -m "${CARGO_TARGET_DIR:-target}/fuzz")
export CARGO_TARGET_DIR=$work
fuzz=(cargo +nightly fuzz run --fuzz-dir tests/fuzz/libfuzzer fuzz)
limits=(-max_len=8192 -timeout=20 -rss_limit_mb=2048)

cargo run --quiet --release --package archipelago-fuzz-tests -- "$work/seeds"
mapfile -t targets < <(if [ $# -gt 0 ]; then printf '%s\n' "$@"; else ls "$work/seeds"; fi)
cargo +nightly fuzz build --fuzz-dir tests/fuzz/libfuzzer fuzz
for target in "${targets[@]}"; do
    mkdir -p "$work/corpus/$target" "$work/failures"
    inputs=("$work/corpus/$target" "$work/seeds/$target")
    [ -d "tests/fuzz/regressions/$target" ] && inputs+=("tests/fuzz/regressions/$target")
    echo "== fuzz: $target, ${SECONDS_EACH:-600} s"
    if ! FUZZ_TARGET=$target "${fuzz[@]}" "${inputs[@]}" -- "${limits[@]}" -max_total_time="${SECONDS_EACH:-600}" \
        -artifact_prefix="$work/failures/$target-" -print_final_stats=1 >"$work/$target.log" 2>&1; then
        tail -n 40 "$work/$target.log"
        echo "fuzz: $target failed; replay: FUZZ_INPUT=<the artifact above> cargo test -p archipelago-fuzz-tests --test replay ${target//-/_}"
        exit 1
    fi
    grep -E 'number_of_executed_units|average_exec_per_sec|new_units_added' "$work/$target.log"
done
