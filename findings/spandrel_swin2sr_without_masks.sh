#!/usr/bin/env bash
# spandrel 0.4.2: a Swin2SR file without `attn_mask` loads without a word as a network whose windows are never shifted. The
# masks are buffers that follow from the image size, so conversions and slimmed files leave them out; spandrel reads from
# their presence which blocks shift. Every second block then computes something else, and the outputs differ with
# nothing missing or unexpected reported. A SwinIR file without them is refused as one with missing keys.
# A way around: build the network, or copy the masks of a complete file of that size into the state dict, before loading.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 torchvision==0.28.0 spandrel==0.4.2 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

import torch

try:
    import torchvision
except RuntimeError:  # a CPU build of torch beside a CUDA build of torchvision lacks an operator that is not used here
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
from spandrel import ModelLoader
from spandrel.architectures.Swin2SR.__arch.Swin2SR import Swin2SR
from spandrel.architectures.SwinIR.__arch.SwinIR import SwinIR

print("spandrel", version("spandrel"), "| torch", version("torch"), "| torchvision", torchvision.__version__)
settings = {"img_size": 16, "window_size": 8, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "upscale": 2}
settings |= {"upsampler": "pixelshuffledirect"}
image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def states(network: type) -> tuple[dict, dict]:
    torch.manual_seed(0)
    state = dict(network(**settings).state_dict())
    return state, {key: value for key, value in state.items() if not key.endswith("attn_mask")}


outputs = []
for weights in states(Swin2SR):
    descriptor = ModelLoader().load_from_state_dict(dict(weights))
    shifts = [block.shift_size for block in descriptor.model.modules() if hasattr(block, "shift_size")]
    outputs.append(descriptor(image))
    print(f"Swin2SR, {len(weights)} tensors: windows shifted by {shifts}")
difference = (outputs[0] - outputs[1]).abs().max().item()
print(f"largest difference of the outputs: {difference:.2e}")
try:
    ModelLoader().load_from_state_dict(states(SwinIR)[1])
    refused = False
except RuntimeError as error:
    print("SwinIR without its masks:", str(error).splitlines()[1].strip()[:70])
    refused = True
sys.exit(not (difference > 1e-4 and refused))
PYTHON
