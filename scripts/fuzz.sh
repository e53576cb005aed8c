#!/usr/bin/env bash
# Fuzzes the placement engine for so many seconds with the coverage-guided target of fuzz/. Wants a C++ compiler and the
# pinned stable Rust, no nightly: it instruments as cargo-fuzz does, without a sanitizer, which safe code does not need.
# Sessions that break a rule end up below fuzz/artifacts; run the target with such a file to see it again.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
seconds=${1:-60}
passes=(sanitizer-coverage-level=4 sanitizer-coverage-inline-8bit-counters sanitizer-coverage-pc-table
    sanitizer-coverage-trace-compares)
flags="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Cdebug-assertions"
for pass in "${passes[@]}"; do flags+=" -Cllvm-args=-$pass"; done
target="$(uname -m)-unknown-linux-gnu"
RUSTFLAGS="$flags" "${CARGO:-cargo}" build --release --locked --target "$target"
mkdir -p artifacts/engine target/corpus
exec "target/$target/release/engine" -max_total_time="$seconds" -timeout=20 -max_len=1500 -print_final_stats=1 \
    -artifact_prefix=artifacts/engine/ target/corpus corpus/engine
