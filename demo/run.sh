#!/usr/bin/env bash
# The main job, for real: a vector database and a PostgreSQL are packed onto three machines, found by name, limited,
# and survive the loss of a machine and of a daemon. Exit status 0 only if every step held. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
export PATH=${BERTH_PROGRAMS:-$root/target/release}:$PATH

[ "$(id -u)" = 0 ] || { echo "the demo makes namespaces and containers: run it as root" >&2; exit 1; }
bold() { if [ -t 1 ]; then printf '\033[1m%s\033[0m\n' "$1"; else printf '%s\n' "$1"; fi; }
step() { echo; bold "── $1"; }
run() { printf '$ %s\n' "$*"; "$@"; }
held() { echo "   held: $1"; }
fail() { echo "   FAILED: $1" >&2; exit 1; }

work=$(mktemp -d /var/tmp/berth-demo.XXXXXX)
state=$work/state
export XDG_CONFIG_HOME=$work/config
finish() {
  status=$?
  trap - EXIT INT TERM
  if [ "$status" != 0 ]; then
    echo "── the demo did not hold; the last lines of every program:" >&2
    for log in "$state"/logs/*.log; do [ -f "$log" ] && { echo "   $log" >&2; tail -n 5 "$log" >&2; }; done
  fi
  berth dev down --state-dir "$state" >"$work/down.log" 2>&1 || { cat "$work/down.log" >&2; status=1; }
  left=$( { ip netns list; ip -o link show type bridge; mount; losetup -ln -O BACK-FILE; nft list tables; } 2>/dev/null | grep -F -e "$work" || true)
  if [ -n "$left" ]; then echo "   FAILED: left behind: $left" >&2; status=1; fi
  rm -rf "$work"
  [ "$status" = 0 ] && { echo; bold "The demo held. Nothing is left behind."; }
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# --- helpers that ask the programs, never the files behind them ---------------------------------------------------
replicas() { berth get replicas -o json; }
replica() { replicas | jq -er --arg id "$1" "[.[] | select(.replicaId == \$id)][0].$2"; }
# The ids of a container's ready replicas, in order.
ready() { replicas | jq -r --arg c "$1" '[.[] | select(.container == $c and .ready) | .replicaId] | sort | .[]'; }
machine_netns() { berth dev machine list --state-dir "$state" -o json | jq -er --arg m "$1" '.[] | select(.name == $m) | .netns'; }
# Asks a replica over HTTP, from its own machine: ask REPLICA PATH
ask() {
  local ip machine
  ip=$(replica "$1" ip) machine=$(replica "$1" machineId)
  nsenter --net="$(machine_netns "$machine")" curl -sS --max-time 20 "http://$ip:8080$2"
}
until_true() { # until_true SECONDS WHAT COMMAND...
  local seconds=$1 what=$2 deadline=$((SECONDS + $1))
  shift 2
  until "$@" >/dev/null 2>&1; do
    if [ $SECONDS -ge $deadline ]; then fail "$what: not within $seconds s"; fi
    sleep 0.3
  done
  held "$what"
}

step "Images, made on this host: a static workload, and PostgreSQL from the distribution's packages"
mkdir -p target/demo
rm -rf target/demo/workload
pack-image --layout target/demo/workload --program "target/$(uname -m)-unknown-linux-gnu/release/berth-test-workload"
postgres=
if demo/postgres-image.sh "$root/target/demo/postgres" "$(command -v pack-image)"; then
  postgres=oci-layout:$root/target/demo/postgres
else
  echo "   no PostgreSQL here (its packages could not be had); going on without it"
fi
workload=oci-layout:$root/target/demo/workload

step "Three machines, each a network namespace with a daemon of its own, and one scheduler"
run berth dev --machines 3 --machine-profile cpu=4,memory=4Gi,ephemeral=1Gi --zones zone-a,zone-b,zone-c \
  --fast-failover --state-dir "$state" --keep

step "Apply the vector database: a storage, a stateful writer with a volume at /wal, readers with ephemeral storage"
run berth apply -f demo/vector-db.json --set-image "writer=$workload" --set-image "reader=$workload"

if [ -n "$postgres" ]; then
  step "Apply a real PostgreSQL and a client of it"
  run berth apply -f demo/postgres.json --set-image "database=$postgres" --set-image "client=$postgres"
fi

step "Where everything was packed"
run berth status
run berth get replicas

reader=$(ready reader | head -n 1)
writer_machine=$(replica writer-0 machineId)
for candidate in $(ready reader); do
  [ "$(replica "$candidate" machineId)" != "$writer_machine" ] && reader=$candidate && break
done
[ "$(replica "$reader" machineId)" != "$writer_machine" ] || fail "no reader is on another machine than the writer"

step "Names: a reader on $(replica "$reader" machineId) asks for the writer on $writer_machine"
echo "$ resolve writer-0.writer.svc, in $reader"
ask "$reader" "/resolve?name=writer-0.writer.svc"
[ "$(ask "$reader" "/resolve?name=writer-0.writer.svc")" = "$(replica writer-0 ip)" ] || fail "the name does not give the writer's address"
echo "$ fetch http://writer-0.writer.svc:8080/, in $reader"
answer=$(ask "$reader" "/fetch?url=http://writer-0.writer.svc:8080/")
echo "$answer"
case $answer in *ordinal=0*) held "HTTP across machines by name" ;; *) fail "the writer did not answer" ;; esac
count=$(ask "$reader" "/resolve?name=reader.svc" | wc -l)
[ "$count" = "$(ready reader | wc -l)" ] || fail "reader.svc gives $count addresses"
held "reader.svc gives all $count ready readers"

step "The volume keeps data, the ephemeral disk has a hard limit, memory and processor are capped"
ask writer-0 "/write?path=/wal/segment&text=kept" >/dev/null
echo "$ fill /var/ephemeral (64 MiB) with 200 MiB"
filled=$(ask "$reader" "/fill?path=/var/ephemeral/f&mib=200")
echo "$filled"
case $filled in *"No space"*) held "the disk is full for this replica" ;; *) fail "the limit of the ephemeral disk did not hold" ;; esac
other=$(ready reader | grep -vx "$reader" | head -n 1)
[ "$(ask "$other" "/fill?path=/var/ephemeral/f&mib=1")" = "1 MiB written" ] || fail "another replica suffers"
held "and for no other"
echo "$ burn 4 threads for 1 s, on 1 vCPU"
burned=$(ask "$reader" "/burn?threads=4&ms=1000")
echo "$burned ms of processor time"
[ "$burned" -le 1300 ] || fail "the processor limit did not hold"
held "at most one processor's worth"
echo "$ allocate 400 MiB, with a limit of 256 MiB"
ask "$reader" "/allocate?mib=400" >/dev/null 2>&1 && fail "the memory limit did not hold"
until_true 20 "the cause of the restart is known: out of memory" sh -c "berth explain '$reader' | grep -qi 'out of memory'"
run berth explain "$reader"
until_true 30 "it runs again" sh -c "[ \$(berth get replicas -o json | jq '[.[] | select(.container == \"reader\" and .ready)] | length') = $count ]"

if [ -n "$postgres" ]; then
  step "PostgreSQL answers its client by name"
  until_true 60 "queries go through" sh -c "berth logs client --tail 1 | grep -q 'on PostgreSQL'"
  run berth logs client --tail 2
fi

step "kill -9 the daemon of $writer_machine: nothing may stop"
pids() { replicas | jq -r --arg m "$writer_machine" '[.[] | select(.machineId == $m) | "\(.replicaId) \(.pid)"] | sort | .[]'; }
before=$(pids)
old=$(berth dev machine list --state-dir "$state" -o json | jq -r --arg m "$writer_machine" '.[] | select(.name == $m) | .daemonPid')
run berth dev daemon kill "$writer_machine" --state-dir "$state"
new_daemon() {
  local pid
  pid=$(berth dev machine list --state-dir "$state" -o json | jq -er --arg m "$writer_machine" '.[] | select(.name == $m) | .daemonPid')
  [ "$pid" != "$old" ] && [ "$pid" != null ]
}
until_true 20 "a new daemon is there" new_daemon
managed() { [ "$(pids)" = "$before" ] && berth get machines -o json | jq -e --arg m "$writer_machine" '.[] | select(.machineId == $m) | .status == "running"'; }
until_true 20 "the same processes, managed again" managed
while read -r id pid; do
  [ -d "/proc/$pid" ] || fail "$id (pid $pid) is gone"
done <<<"$before"
[ "$(ask writer-0 "/read?path=/wal/segment")" = kept ] || fail "the writer lost its data"
held "every process has the pid it had"

lost=$(replica "$reader" machineId)
step "Power off $lost: its replicas move"
run berth dev machine kill "$lost" --state-dir "$state"
moved() { berth get replicas -o json | jq -e --arg m "$lost" --argjson n "$count" '([.[] | select(.machineId == $m)] | length) == 0 and ([.[] | select(.container == "reader" and .ready)] | length) == $n'; }
until_true 60 "all $count readers are ready on the other machines" moved
[ -z "$postgres" ] || until_true 60 "PostgreSQL is ready" sh -c "berth get replicas -o json | jq -e '[.[] | select(.container == \"database\" and .ready)] | length == 1'"
run berth status
survivor=$(ready reader | head -n 1)
names_follow() { [ "$(ask "$survivor" "/resolve?name=reader.svc" | wc -l)" = "$count" ] && ask "$survivor" "/fetch?url=http://reader.svc:8080/health" | grep -q ok; }
until_true 20 "names follow" names_follow
run berth events --limit 8

step "Clean up"
