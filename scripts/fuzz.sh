#!/usr/bin/env bash
# fuzz.sh SECONDS [TARGET]: fuzzes one target of fuzz/, or each of them, for so many seconds, guided by coverage. Wants a C++
# compiler and the pinned stable Rust, no nightly: it instruments as cargo-fuzz does, without a sanitizer, which safe code does
# not need. Inputs that break a rule end up below fuzz/artifacts; run the target with such a file to see it again.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
seconds=${1:-60}
targets=(engine layer link manifest reference)
[[ -n ${2:-} ]] && targets=("$2")
passes=(sanitizer-coverage-level=4 sanitizer-coverage-inline-8bit-counters sanitizer-coverage-pc-table
    sanitizer-coverage-trace-compares)
flags="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Cdebug-assertions"
for pass in "${passes[@]}"; do flags+=" -Cllvm-args=-$pass"; done
triple="$(uname -m)-unknown-linux-gnu"
# The longest input that makes sense: a session with the engine is short, a tar has 512 bytes for each header.
declare -A max_len=([engine]=1500 [layer]=20000 [link]=6000 [manifest]=6000 [reference]=600)
for target in "${targets[@]}"; do
    [[ -n ${max_len[$target]:-} ]] || { echo "no target $target; there are ${!max_len[*]}" >&2; exit 2; }
    RUSTFLAGS="$flags" "${CARGO:-cargo}" build --release --locked --target "$triple" --target-dir target --bin "$target"
    mkdir -p "artifacts/$target" "target/corpus/$target"
    echo "$target for $seconds s"
    "target/$triple/release/$target" -max_total_time="$seconds" -timeout=20 -max_len="${max_len[$target]}" \
        -print_final_stats=1 -artifact_prefix="artifacts/$target/" "target/corpus/$target" "corpus/$target"
done
