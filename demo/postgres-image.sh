#!/usr/bin/env bash
# Makes an OCI layout with a real PostgreSQL from the distribution's own packages, so that the demo needs no registry.
# Usage: postgres-image.sh LAYOUT_DIR PACK_IMAGE_PROGRAM
set -euo pipefail
layout=$1
pack=$2
[ -f "$layout/index.json" ] && exit 0
command -v mmdebstrap >/dev/null || { echo "mmdebstrap is missing; make demo installs it" >&2; exit 1; }

work=$(mktemp -d "${TMPDIR:-/tmp}/berth-postgres.XXXXXX")
trap 'rm -rf "$work"' EXIT
# The machine's own package sources: whatever mirror it uses is the one that works.
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.sources; do
  [ -s "$file" ] && sources+=("$file")
done
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
TMPDIR=$work mmdebstrap --quiet --variant=essential --include=postgresql \
  --aptopt='Apt::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/i18n/*' \
  --customize-hook="install -m 755 '$(dirname "$0")/postgres-entry.sh' \"\$1/usr/local/bin/postgres-entry\"" \
  "$suite" "$work/root.tar" "${sources[@]}"
mkdir -p "$(dirname "$layout")"
"$pack" --layout "$layout.new" --rootfs "$work/root.tar" --entrypoint /usr/local/bin/postgres-entry --stop-signal SIGINT
mv "$layout.new" "$layout"
