#!/usr/bin/env bash
# What neither compiler nor clippy checks: left-over notes, files and clocks where none belong, who may know whom. Reports every
# finding. (Clocks and sleeping anywhere else: clippy.toml.)
set -uo pipefail
cd "$(dirname "$0")/.."

found=0
# Prints what it reads on standard input as findings of the rule $1.
report() {
    local line
    while IFS= read -r line; do
        printf '%s: %s\n' "$1" "$line"
        found=$((found + 1))
    done
}

sources() { git ls-files --cached --others --exclude-standard -- '*.rs'; }
# Lines of Rust sources below the folders $2... that match $1, comments left out.
code_with() {
    local pattern=$1
    shift
    git ls-files --cached --others --exclude-standard -- "${@/%//*.rs}" |
        xargs --no-run-if-empty grep --line-number --with-filename --extended-regexp -e "$pattern" |
        grep --invert-match --extended-regexp '^[^:]+:[0-9]+: *//' || true
}

report 'left-over note' < <(git grep --untracked --line-number --extended-regexp -w -e 'FIXM[E]|XX[X]|TOD[O]' -- '*.rs' '*.sh' '*.toml' '*.md' || true)
# Unit tests stand among the sources: what they skip, they print.
report 'a print that panics when nobody can read it (write with writeln!, or log)' < <(code_with '\be?print(ln)?!\(' xseg peers drivers control |
    grep --invert-match --extended-regexp '/tests?(/|\.rs)|"skipped: ' || true)
report 'unfinished code' < <(code_with '\b(todo|unimplemented)!\(' xseg peers drivers control bench tests)
report 'codecs and state machines read no clock, no files' < <(code_with '^[^"]*(Instant::now|SystemTime::now|std::fs|File::open)' peers/mapper/src peers/volume/src peers/protocol/src |
    grep --invert-match --extended-regexp '/tests?(/|\.rs)' || true)
report 'the mapper itself knows no port (only its peer does)' < <(code_with '\b(xseg|archipelago_runtime)::' peers/mapper/src ':!peers/mapper/src/peer')
report 'unsafe code outside its places' < <(sources | grep 'src/lib\.rs$' | grep --invert-match --extended-regexp '^(xseg|peers/runtime|peers/librados-sys)/' |
    xargs --no-run-if-empty grep --files-without-match --extended-regexp 'forbid\(unsafe_code\)|deny\(unsafe_code\)' || true)
report 'lints of the workspace not taken' < <(git ls-files --cached --others --exclude-standard -- '*/Cargo.toml' ':!tests/fuzz/libfuzzer' |
    xargs --no-run-if-empty grep --files-without-match --fixed-strings '[lints]' || true)
report 'a shell script that does not stop at a failure' < <(git ls-files --cached --others --exclude-standard -- '*.sh' .ci/run |
    xargs --no-run-if-empty grep --files-without-match --extended-regexp '^set -[eu]*uo? ?pipefail|^set -euo pipefail|^#!/bin/busybox|^# What the tests ask a guest' || true)

# Links from one document to a file.
report 'a link that leads nowhere' < <(git ls-files --cached --others --exclude-standard -- '*.md' | while IFS= read -r page; do
    grep --only-matching --extended-regexp '\]\([^)#:]+' "$page" | sed 's/^](//' | sort -u | while IFS= read -r target; do
        [ -e "$(dirname "$page")/$target" ] || echo "$page -> $target"
    done
done)

# Who may know whom (DESIGN of the layers: ARCHITECTURE.md). Normal dependencies; tests may use what they replace.
metadata=$(cargo metadata --format-version 1 --no-deps --offline 2>/dev/null || cargo metadata --format-version 1 --no-deps)
edges=$(jq --raw-output '
    (.workspace_root + "/") as $root
    | (.packages | map({ key: .name, value: (.manifest_path | ltrimstr($root) | rtrimstr("/Cargo.toml")) }) | from_entries) as $home
    | .packages[] | $home[.name] as $from
    | .dependencies[] | select(.kind == null and $home[.name] != null)
    | $from + " " + $home[.name]' <<<"$metadata")

report 'forbidden dependency' < <(while read -r from to; do
    case "$from $to" in
    'peers/protocol peers/'*) echo "$from -> $to" ;;
    'tests/'*) continue ;;
    # Nor do benchmarks reach a user that have a cluster, a node or a daemon of their own, as tests have.
    'bench/rados '* | 'bench/null '*) continue ;;
    # Doubles and harnesses are compiled into tests only.
    *' tests/'*) echo "$from -> $to" ;;
    # One backend alone links librados.
    'peers/blocker-rados peers/librados-sys') continue ;;
    *' peers/librados-sys') echo "$from -> $to" ;;
    # Hosts all peers and drivers; only control and tests may use it.
    'peers/host '*) case "$to" in control/* | tests/* | bench*) echo "$from -> $to" ;; esac ;;
    # What the command and other programs link: types and a client.
    'control/api peers/protocol') continue ;;
    'control/api '* | 'control/cli control/node') echo "$from -> $to" ;;
    # What Ganeti calls asks a node, as the command does.
    'control/ganeti control/api' | 'control/ganeti peers/protocol') continue ;;
    'control/ganeti '*) echo "$from -> $to" ;;
    # Only these wire parts together.
    control/* | bench*) continue ;;
    # What all share.
    'peers/'*' peers/protocol' | 'peers/'*' xseg' | 'drivers/'*' peers/protocol' | 'drivers/'*' xseg') continue ;;
    'peers/'*' peers/runtime' | 'drivers/'*' peers/runtime') continue ;;
    # What drivers share knows none of them.
    'drivers/endpoint drivers/'*) echo "$from -> $to" ;;
    'drivers/'*' drivers/endpoint') continue ;;
    # Bytes that mean the same in both.
    'drivers/nbd drivers/nbd-protocol' | 'drivers/nbd-tcp drivers/nbd-protocol') continue ;;
    # Programs of their own, which ask a node and use its channels as any other program does, and what they share.
    'drivers/nbd-tcp drivers/segment' | 'drivers/nbd-tcp control/api' | 'drivers/nbd-tcp drivers/kept-volume') continue ;;
    'drivers/fuse drivers/segment' | 'drivers/fuse control/api' | 'drivers/fuse drivers/kept-volume') continue ;;
    'drivers/kept-volume drivers/segment' | 'drivers/kept-volume control/api') continue ;;
    # A backend implements the contract.
    'peers/blocker-'*' peers/blocker') continue ;;
    *) echo "$from -> $to" ;;
    esac
done <<<"$edges")

# These programs ask a node; they host nothing, serve nothing and confine nothing.
for package in archipelago-cli archipelago-ganeti; do
    tree=(cargo tree --package "$package" --edges normal --prefix none --format '{p}')
    linked=$({ "${tree[@]}" --offline 2>/dev/null || "${tree[@]}"; } | cut -d ' ' -f 1 | sort -u)
    report "linked into $package" < <(
        grep --extended-regexp '^(archipelago-(node|host|mapper|volume|blocker.*|runtime|vhost-user|nbd)|io-uring|landlock|axum|tokio)$' <<<"$linked")
    # An empty answer would pass the rule above.
    report "not linked into $package: does cargo tree work?" < <(grep --quiet '^archipelago-api$' <<<"$linked" || echo archipelago-api)
done
# Channels of the data path neither.
report 'linked into archipelago-ganeti' < <(grep --extended-regexp '^archipelago-(segment|endpoint)$' <<<"$linked")

# Licences of everything that is linked into our programs: those that Apache-2.0 goes together with.
report 'a licence that nobody looked at' < <(cargo metadata --format-version 1 2>/dev/null | jq --raw-output '
    .packages[] | select(.source != null)
    | select((.license // "none") | gsub("[()]"; "") | gsub("/"; " OR ") | split(" OR ")
        | any(test("^(Apache-2.0|MIT|BSD-2-Clause|BSD-3-Clause|ISC|Zlib|CC0-1.0|Unicode-3.0|Unlicense|MIT-0|0BSD|Apache-2.0 WITH LLVM-exception|(MIT|Apache-2.0|BSD-3-Clause)( AND (MIT|Apache-2.0|BSD-3-Clause|Unicode-3.0|ISC))+)$")) | not)
    | .name + " " + .version + ": " + (.license // "none")')

if [ "$found" -gt 0 ]; then
    echo "tidy: $found findings"
    exit 1
fi
