#!/usr/bin/env bash
# Runs every test. Test binaries named host_* need root and a real kernel, containerd and so on; without root they
# are left out and named.
set -euo pipefail
cd "$(dirname "$0")/.."

filter=()
if [ "$(id -u)" != 0 ]; then
  echo "SKIPPED, because this is not root (they make namespaces, mounts and containers):"
  for file in tests/tests/host_*; do echo "  $(basename "$file" .rs)"; done | sort -u
  filter=(-E 'not binary(/^host_/)')
fi

if ! cargo nextest --version >/dev/null 2>&1; then
  echo "installing cargo-nextest: runs the tests, each in a process of its own"
  cargo install --locked cargo-nextest@0.9.143
fi
# The description of the API is what its types give.
scripts/openapi.sh --check
# The tests of whole programs start these by path.
cargo build --workspace --bins --locked
# A short run of what `make fuzz-api` does for longer; its seed is fixed, so that a change breaks it and not chance.
SEED=${SEED:-20261122} BERTH_SCHEDULER=target/debug/berth-scheduler scripts/fuzz-api.sh "${FUZZ_API_SECONDS:-25}"
exec cargo nextest run --workspace --locked --no-fail-fast "${filter[@]}"
