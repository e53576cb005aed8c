#!/usr/bin/env bash
# Derives the schemas of the API's description from its types. Without arguments it writes them to
# scheduler/openapi-schemas.json; with --check it fails when they are not what the file holds.
set -euo pipefail
cd "$(dirname "$0")/.."
file=scheduler/openapi-schemas.json
found=$(cd openapi && CARGO_TARGET_DIR=../target/openapi "${CARGO:-cargo}" run --quiet --locked)
if [ "${1:-}" = --check ]; then
  diff -u "$file" <(echo "$found") || { echo "$file is not what the types give: run scripts/openapi.sh" >&2; exit 1; }
else
  echo "$found" >"$file"
fi
