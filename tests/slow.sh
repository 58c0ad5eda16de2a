#!/usr/bin/env bash
# Runs the long proofs that the suite leaves out: many kills, a minute of damaged files, compiled losses.
# usage: [PYTHON=path/to/python] tests/slow.sh [pytest options]
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m pytest --slow -m slow "$@"
