#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.torch.load, which reads bytes, returns the tensors in another order at every call, even
# within one process; load_file and safe_open return them sorted by name. Sorted is not the network's order either:
# layer10 comes before layer2. Whatever depends on a state dict's order (a digest over its items, names that are matched
# in turn, the "first convolution" when a network is recognised) differs from call to call, or from the .pth file.
# A way around: sort the names, or take the order from the network's own state_dict().
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/weights.safetensors" <<'PYTHON'
import sys
from pathlib import Path

import safetensors
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

names = [f"layer{number}" for number in range(20)]
file = Path(sys.argv[1])
save_file({name: torch.zeros(1) for name in names}, file)
print("safetensors", safetensors.__version__, "with torch", torch.__version__)
from_bytes = [list(load(file.read_bytes())) for _ in range(8)]
from_file = [list(load_file(file)) for _ in range(8)]
with safe_open(file, "pt") as opened:
    from_file.append(list(opened.keys()))
print("load, first call:      ", *from_bytes[0][:6], "...")
print("load, second call:     ", *from_bytes[1][:6], "...")
print("load_file:             ", *from_file[0][:6], "...")
differs = len({tuple(order) for order in from_bytes}) > 1
is_sorted = all(order == sorted(names) for order in from_file)
print("orders of 8 calls of load differ:", differs)
print("load_file and safe_open sort by name:", is_sorted)
sys.exit(not (differs and is_sorted))
PYTHON
