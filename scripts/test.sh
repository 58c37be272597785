#!/usr/bin/env bash
# Makes .venv if need be, checks style, types and the direction of imports, runs the tests. Arguments go to pytest: bash scripts/test.sh -k psnr
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
ensure_environment test,dev </dev/null
ensure_browser </dev/null

status=0
.venv/bin/python -m ruff check || status=1
.venv/bin/python -m ruff format --check || status=1
.venv/bin/python -m mypy || status=1
.venv/bin/lint-imports || status=1
.venv/bin/python -m pytest -q -n 2 "$@" </dev/null || status=$?
exit "$status"
