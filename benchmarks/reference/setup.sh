#!/usr/bin/env bash
# Makes the reference's environment: basicsr 1.4.2 and the PyTorch that we use, apart from ours.
#     bash benchmarks/reference/setup.sh [FOLDER]     (default: benchmarks/reference/.venv)
# TORCH_INDEX_URL, if set, is a further package index to find torch in, as for install.sh.
set -euo pipefail
if (($# > 1)) || [[ "${1:-}" == -* ]]; then
    echo "usage: bash benchmarks/reference/setup.sh [FOLDER]     (default: benchmarks/reference/.venv)"
    exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
folder="${1:-$here/.venv}"
pinned() { sed -n "s/^$1==\([^; ]*\).*/\1/p" "$here/../../constraints.txt"; }
torch="$(pinned torch)"

pip_install() {
    "$folder/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} "$@" </dev/null
}

if "$folder/bin/python" -I "$here/worker.py" --check 2>/dev/null; then
    echo "$folder is complete, nothing to do"
else
    "${PYTHON:-python3}" -m venv "$folder"
    if nvidia-smi -L 2>/dev/null | grep -q '^GPU' || ! pip_install "torch==$torch+cpu" 2>/dev/null; then
        pip_install "torch==$torch"
    fi
    # With torch named again, so that nothing brings another version of it.
    pip_install "torch==$torch" "torchvision==$(pinned torchvision)" numpy cython wheel "setuptools<81"
    # basicsr's setup imports torch and numpy. OpenCV is taken without a window system, hence --no-deps.
    pip_install --no-build-isolation --no-deps basicsr==1.4.2
    pip_install addict future lmdb opencv-python-headless pillow pyyaml requests scikit-image scipy tensorboard tqdm yapf
    "$folder/bin/python" -I "$here/worker.py" --check
fi
echo "now: python benchmarks/run.py --reference $folder/bin/python"
