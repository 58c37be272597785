# To be sourced from the root of the repository: `ensure_environment [extras]` makes or updates .venv.

# Prints the first Python of at least 3.10; $PYTHON, if set, is tried first.
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python python3.13 python3.12 python3.11 python3.10; do
        if [[ -n "$candidate" ]] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    echo "error: no Python of version 3.10 or later was found; install one, or set PYTHON to its path" >&2
    return 1
}

# Creates .venv unless there is a working one.
create_environment() {
    local python
    if .venv/bin/python -c 'import pip' 2>/dev/null; then
        return 0
    fi
    if [[ -e .venv && ! -e .venv/pyvenv.cfg ]]; then
        echo "error: .venv is there but no virtual environment; move it away" >&2
        return 1
    fi
    python="$(find_python)" || return 1
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "error: $python cannot make virtual environments; install its venv package (Debian, Ubuntu: python3-venv)" >&2
        return 1
    fi
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
}

# Identifies what .venv should hold: a change of any of these calls for an installation.
environment_stamp() {
    .venv/bin/python - <<'PYTHON'
import hashlib
import os
import sys

digest = hashlib.sha256(f"{sys.version} {os.getcwd()}".encode())
for name in ("pyproject.toml", "constraints.txt", "requirements.txt", "install.sh"):
    with open(name, "rb") as file:
        digest.update(file.read())
print(digest.hexdigest())
PYTHON
}

# Makes .venv hold the package and the given extras ("test,dev"); quick where it does already.
ensure_environment() {
    local extras="${1:-}" stamp
    create_environment || return 1
    stamp="$(environment_stamp)" || return 1
    local record=".venv/installed-${extras:-runtime}"
    if [[ -f "$record" && "$(cat "$record")" == "$stamp" ]]; then
        return 0
    fi
    VIRTUAL_ENV="$PWD/.venv" bash install.sh "$extras" || return 1
    printf '%s\n' "$stamp" >"$record"
    printf '%s\n' "$stamp" >.venv/installed-runtime
}

# Sees to Chromium, in which the HTML report is tested; without it those tests are skipped. Root on Debian gets the
# distribution's package, everybody else a line that says what to install.
ensure_browser() {
    if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then
        return 0
    fi
    if [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then
        echo "Installing Chromium for the tests of the HTML report"
        if apt-get update -qq >/dev/null 2>&1 && apt-get install -y -qq chromium >/dev/null 2>&1; then
            return 0
        fi
    fi
    echo "No Chromium: the tests of the HTML report in a browser are skipped; to run them, install chromium"
}
