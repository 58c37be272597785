#!/usr/bin/env bash
# Installs the package for development, with the tested versions of what it needs:
#     bash install.sh [extras]        extras: those of pyproject.toml, such as test or export, or several as "test,dev"
# into the active environment (venv or conda), else into .venv, which it makes. With an NVIDIA GPU it takes the CUDA
# build of torch, without one the CPU build. TORCH_INDEX_URL, if set, is a further package index to find torch in.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
extras="${1:-}"
offered="$(sed -n '/^\[project.optional-dependencies\]/,/^\[project.scripts\]/s/^\([a-z]*\) = .*/\1/p' pyproject.toml | xargs)"
for extra in ${extras//,/ }; do
    if [[ " $offered " != *" $extra "* ]]; then
        echo "error: there is no extra '$extra'; give one of ${offered// /, }, or several with commas between" >&2
        exit 2
    fi
done

if [[ -n "${VIRTUAL_ENV:-}" ]]; then
    python="$VIRTUAL_ENV/bin/python"
elif [[ -n "${CONDA_PREFIX:-}" ]]; then
    python="$CONDA_PREFIX/bin/python"
else
    source scripts/environment.sh
    ensure_environment "$extras"
    echo "Installed into .venv; to use it: source .venv/bin/activate"
    exit 0
fi

if [[ ! -x "$python" ]]; then
    echo "error: $python, of the active environment, is no program; deactivate or repair that environment" >&2
    exit 1
fi

version_of() { # version of an installed distribution, empty if there is none; asked outside the repository
    (cd / && "$python" -c '
import importlib.metadata, sys
try:
    print(importlib.metadata.version(sys.argv[1]))
except importlib.metadata.PackageNotFoundError:
    pass' "$1")
}

pinned() { sed -n "s/^$1==\([^; ]*\).*/\1/p" constraints.txt; }

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $("$python" --version) is too old: Python 3.10 or later is needed" >&2
    exit 1
fi
published="$(version_of basicsr)"
if [[ -n "$published" ]]; then
    echo "error: basicsr $published is installed in $("$python" -c 'import sys; print(sys.prefix)'); this package is" \
        "imported by the same name. Use another environment, or remove it: $python -m pip uninstall basicsr" >&2
    exit 1
fi

has_gpu() { nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

pip_install() {
    "$python" -m pip install --no-input --disable-pip-version-check --constraint constraints.txt \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} "$@" </dev/null
}

torch="$(pinned torch)"
installed="$(version_of torch)"
if [[ "${installed%%+*}" == "$torch" ]]; then
    echo "torch $installed is there already"
elif has_gpu; then
    echo "An NVIDIA GPU is present: installing the CUDA build of torch $torch"
    pip_install "torch==$torch"
elif [[ "$(uname -s)" != Linux ]]; then
    echo "No NVIDIA GPU: installing torch $torch"
    pip_install "torch==$torch"
else
    echo "No NVIDIA GPU: installing the CPU build of torch $torch"
    # Whatever fails here besides a missing build fails again, and is shown, in the second attempt.
    if ! pip_install "torch==$torch+cpu" 2>/dev/null; then
        echo "pip finds no CPU build of torch $torch: installing the default one, which brings several GB of CUDA along." \
            "To avoid that, set TORCH_INDEX_URL to the CPU index that pytorch.org names under 'Get Started'" \
            "and run install.sh again in a new environment"
        pip_install "torch==$torch"
    fi
fi
pip_install --editable ".${extras:+[$extras]}"
installed="$(version_of torch)"
echo "Installed with torch $installed into $("$python" -c 'import sys; print(sys.prefix)')"
if [[ "$installed" == *+cpu ]] && has_gpu; then
    echo "warning: torch $installed cannot use this machine's GPU; remove it ($python -m pip uninstall torch)," \
        "set TORCH_INDEX_URL to a CUDA index of PyTorch's and run install.sh again" >&2
fi
