#!/usr/bin/env bash
# Measures the real programs and leaves nothing behind. Needs root. See README.md.
#   benches/run.sh           starts of one and of fifty replicas, what reaches the node, use at rest
#   benches/run.sh node      two hundred replicas, a new daemon among them, pulls, programs in replicas
#   BERTH_PROGRAMS=DIR       where berth, berth-scheduler, berthd and berth-logkeeper are [target/release]
#   BERTH_BENCH_PROFILE=dev  builds the measuring program unoptimised [release]
#   BERTH_BENCH_WORK=DIR     where everything written goes [/var/tmp]
#   BERTH_BENCH_RUNS=N       single starts measured [20]
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
export PATH=$PATH:$HOME/.cargo/bin

[ "$(id -u)" = 0 ] || { echo "the benches make namespaces and containers: run them as root" >&2; exit 1; }
suite=${1:-start}
case $suite in
  start) cpu=64 output=target/bench/issue-2.json ;;
  node) cpu=256 output=target/bench/node.json ;;
  *) echo "there is no suite $suite: start or node" >&2; exit 2 ;;
esac
profile=${BERTH_BENCH_PROFILE:-release}
directory=$profile
[ "$profile" = dev ] && directory=debug
programs=${BERTH_PROGRAMS:-$root/target/$directory}
data=${BERTH_BENCH_WORK:-/var/tmp}
for program in berth berth-scheduler berthd berth-logkeeper; do
  [ -x "$programs/$program" ] || { echo "$programs/$program is not there: make build" >&2; exit 1; }
done
cargo build --quiet --locked --profile "$profile" --workspace --bin berth-bench

mkdir -p target/bench
rm -rf target/bench/workload
pack=$(command -v pack-image || true)
for candidate in "$programs/pack-image" "$root/target/release/pack-image" "$root/target/debug/pack-image"; do
  [ -z "$pack" ] && [ -x "$candidate" ] && pack=$candidate
done
if [ -z "$pack" ]; then
  cargo build --quiet --locked --profile "$profile" --workspace --bin pack-image
  pack=$root/target/$directory/pack-image
fi
"$pack" --layout target/bench/workload --program "target/$(uname -m)-unknown-linux-gnu/release/berth-test-workload" >/dev/null

work=$(mktemp -d "$data/berth-bench.XXXXXX")
export XDG_CONFIG_HOME=$work/config
finish() {
  status=$?
  trap - EXIT INT TERM
  if [ "$status" != 0 ]; then
    for log in "$work"/state/logs/*.log; do [ -f "$log" ] && { echo "-- $log" >&2; tail -n 5 "$log" >&2; }; done
  fi
  if [ -e "$work/state" ]; then
    "$programs/berth" dev down --state-dir "$work/state" >"$work/down.log" 2>&1 || { cat "$work/down.log" >&2; status=1; }
  fi
  [ -z "${registry_pid:-}" ] || kill "$registry_pid" 2>/dev/null || true
  left=$( { ip netns list; mount; losetup -ln -O BACK-FILE; } 2>/dev/null | grep -F -e "$work" || true)
  [ -z "$left" ] || { echo "left behind: $left" >&2; status=1; }
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

registry=
if [ "$suite" = node ] && command -v docker-registry >/dev/null && command -v skopeo >/dev/null; then
  registry=127.0.0.1:${BERTH_BENCH_PORT:-5055}
  mkdir -p "$work/registry"
  cat >"$work/registry.yml" <<EOF
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: $registry}
EOF
  docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
  registry_pid=$!
fi
PATH=$programs:$PATH "$programs/berth" dev --machines 1 --machine-profile cpu=$cpu,memory=256Gi,ephemeral=64Gi \
  --state-dir "$work/state" --keep >"$work/up.log" 2>&1 || { cat "$work/up.log" >&2; exit 1; }
"target/$directory/berth-bench" --berth "$programs/berth" --state-dir "$work/state" \
  --image "oci-layout:$root/target/bench/workload" --output "$output" --runs "${BERTH_BENCH_RUNS:-20}" \
  --suite "$suite" --registry "$registry"
