#!/usr/bin/env bash
# PyTorch 2.13.0 (2.11.0 likewise): torch.utils.flop_counter.FlopCounterMode cannot count torch.autograd.grad with
# respect to a leaf tensor, such as the input of a discriminator whose gradient is asked for. Its module tracker asks
# autograd whether a node will run, which raises RuntimeError for leaves ("A leaf node was passed to
# _will_engine_execute_node"). The same call without the counter works, and so does backward() under it.
# A way around: replace the counter's `mod_tracker`, where counts per module are not needed.
# Output seen: "backward: 41472", "grad of a leaf: RuntimeError", "grad of a leaf, no counter: ok".
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

print("torch", torch.__version__)
layer = nn.Conv2d(3, 4, 3, padding=1)
image = torch.rand(1, 3, 8, 8, requires_grad=True)

with FlopCounterMode(display=False) as counter:
    (layer(image) * 1).sum().backward()
print("backward:", counter.get_total_flops())

raised = ""
try:
    with FlopCounterMode(display=False):
        torch.autograd.grad(layer(image).sum(), image)
except RuntimeError as error:
    raised = str(error)
print("grad of a leaf:", "RuntimeError" if raised else "ok")

torch.autograd.grad(layer(image).sum(), image)
print("grad of a leaf, no counter: ok")
sys.exit("_will_engine_execute_node" not in raised)
PYTHON
