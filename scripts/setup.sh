#!/usr/bin/env bash
# Installs what is missing on Debian and Ubuntu, one line each with the reason; elsewhere lists it and stops.
# Usage: setup.sh [build] [run] [demo] [test]
set -euo pipefail

# purpose | what must exist (a program, a file, or a module of Python) | package | why
needs() {
  cat <<'LIST'
build|cc|gcc|links Rust programs and compiles SQLite and the TLS library
build|/usr/include/stdio.h|libc6-dev|headers for the same
build|protoc|protobuf-compiler|compiles the protocol of the node link
build|/usr/include/google/protobuf/empty.proto|libprotobuf-dev|the well-known messages that protoc includes
build|curl|curl|fetches the Rust toolchain, and asks the demo's replicas
build|/etc/ssl/certs/ca-certificates.crt|ca-certificates|checks the peers of every download
run|containerd|containerd|runs the replicas
run|runc|runc|starts their processes
run|nft|nftables|masquerades, forwards host ports, keeps replicas from what they may not reach
run|ip|iproute2|makes the machines of berth dev
run|mkfs.ext4|e2fsprogs|makes the ephemeral file systems
run|nsenter|util-linux|enters a machine's network
run|jq|jq|lets the demo read the programs' JSON
demo|mmdebstrap|mmdebstrap|makes the PostgreSQL image of the demo
test|python3:ensurepip|python3-venv|holds what fuzzes the API and validates its description
test|etcd|etcd-server|the store of high availability, and what kills it, in tests
test|docker-registry|docker-registry|the registry that images are pulled from in tests
test|skopeo|skopeo|puts test images into that registry
test|zstd|zstd|compresses layers of test images
test|busybox|busybox-static|a shell for test containers
LIST
}

present() {
  case $1 in
  /*) [ -e "$1" ] ;;
  python3:*) python3 -c "import ${1#*:}" 2>/dev/null ;;
  *) command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] ;;
  esac
}

missing=()
while IFS='|' read -r purpose thing package why; do
  case " $* " in *" $purpose "*) ;; *) continue ;; esac
  present "$thing" || missing+=("$package|$why")
done < <(needs)

if [ ${#missing[@]} -gt 0 ]; then
  packages=()
  for line in "${missing[@]}"; do packages+=("${line%%|*}"); done
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "This machine has no apt-get. Install these, then try again:" >&2
    for line in "${missing[@]}"; do echo "  ${line%%|*}: ${line#*|}" >&2; done
    exit 1
  fi
  sudo=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null 2>&1 || { echo "Run as root, or install: ${packages[*]}" >&2; exit 1; }
    sudo=(sudo)
  fi
  for line in "${missing[@]}"; do echo "installing ${line%%|*}: ${line#*|}"; done
  log=$(mktemp)
  install() {
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}" >"$log" 2>&1
  }
  install || { "${sudo[@]}" apt-get update >>"$log" 2>&1 && install; } || {
    cat "$log" >&2
    echo "apt-get could not install: ${packages[*]}" >&2
    exit 1
  }
  rm -f "$log"
  # The tests start a registry and etcd of their own; the packaged services would only hold their ports.
  if [[ " ${packages[*]} " == *" docker-registry "* ]] && [ -d /run/systemd/system ]; then
    "${sudo[@]}" systemctl disable --now docker-registry.service >/dev/null 2>&1 || true
  fi
  if [[ " ${packages[*]} " == *" etcd-server "* ]] && [ -d /run/systemd/system ]; then
    "${sudo[@]}" systemctl disable --now etcd.service >/dev/null 2>&1 || true
  fi
fi

if ! command -v cargo >/dev/null 2>&1; then
  echo "installing the Rust toolchain: builds Berth (rust-toolchain.toml pins its version)"
  if command -v rustup-init >/dev/null 2>&1; then
    rustup-init -y --profile minimal --default-toolchain none
  else
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none
  fi
fi
