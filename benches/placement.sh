#!/usr/bin/env bash
# Measures placement and writes the committed report. Needs no root and no containers. See README.md.
#   BERTH_BENCH_DATA=DIR     where the public traces lie [../shared/bench-data]
#   BERTH_BENCH_QUICK=1      less of everything: to see whether it runs, not to quote
#   arguments                names of benchmarks; all without any
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:$HOME/.cargo/bin

cargo build --quiet --release --locked -p berth-benches --bin berth-bench-placement
# The solver that tightens the lower bounds of static packing. Without it the packer's own bounds are used.
venv=target/bench/venv
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import highspy, numpy' 2>/dev/null; then
  mkdir -p target/bench
  if python3 -m venv "$venv" >/dev/null 2>&1 && "$venv/bin/pip" install --quiet highspy==1.15.1 numpy >/dev/null 2>&1; then
    echo "installed the solver for lower bounds below $venv"
  else
    echo "no solver for lower bounds: python3 with venv and the packages highspy==1.15.1 and numpy would give tighter ones"
  fi
fi
if [ "$#" = 0 ]; then
  exec target/release/berth-bench-placement --write-report
fi
exec target/release/berth-bench-placement "$@"
