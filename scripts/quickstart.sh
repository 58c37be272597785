#!/usr/bin/env bash
# From nothing to a distilled network in minutes, with or without a GPU: makes .venv, builds a small dataset, trains a
# teacher and a student, distils the teacher into the same student, compares them, and writes an int8 file that onnxruntime
# runs.
set -euo pipefail
if (($# > 1)) || [[ "${1:---fresh}" != --fresh ]]; then
    echo "usage: bash scripts/quickstart.sh [--fresh]     (what is done already is left out; --fresh does it all again)"
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
trap 'echo "stopped; to go on where it stopped: bash scripts/quickstart.sh" >&2; exit 130' INT TERM
ensure_environment export </dev/null
exec .venv/bin/python scripts/quickstart/steps.py "$@"
