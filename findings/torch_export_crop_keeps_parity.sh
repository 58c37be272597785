#!/usr/bin/env bash
# torch 2.13.0: a network that extends images to even sides, enlarges them and cuts its output to size, exported by torch.export
# with free height and width from an image of 17x21 pixels, takes images with odd sides only: the program refuses 16x24. Exported
# from an even image it refuses odd ones. export() says nothing of it. A slice is a view, and whether a view is contiguous is
# recorded as a condition on the sizes of the input. F.pad with negative widths cuts as well, gives a tensor of its own, and
# the program takes any size. SwinIR-like and U-shaped networks end in such a slice.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import torch.nn.functional as F
from torch import nn

print("torch", torch.__version__)


class Network(nn.Module):
    def __init__(self, by_slice: bool) -> None:
        super().__init__()
        self.conv, self.by_slice = nn.Conv2d(3, 12, 3, padding=1), by_slice

    def forward(self, x):
        h, w = x.shape[-2:]
        y = F.pixel_shuffle(self.conv(F.pad(x, (0, w % 2, 0, h % 2))), 2)
        if self.by_slice:
            return y[..., : 2 * h, : 2 * w]
        return F.pad(y, (0, 2 * w - y.shape[-1], 0, 2 * h - y.shape[-2]))


taken = {}
free = {"x": {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}}
for by_slice in (True, False):
    network = Network(by_slice).eval()
    program = torch.export.export(network, (torch.rand(1, 3, 17, 21),), dynamic_shapes=free).module()
    taken[by_slice] = []
    for size in ((17, 21), (31, 41), (16, 24), (30, 40)):
        image = torch.rand(1, 3, *size)
        try:
            assert torch.allclose(program(image), network(image), atol=1e-5)
            taken[by_slice].append(size)
        except (AssertionError, RuntimeError) as error:
            print("  refused:", size, str(error).splitlines()[0][:90])
    print("cut by a slice, " if by_slice else "cut by F.pad, ", "traced at 17x21, takes", taken[by_slice])
sys.exit(not (taken[True] == [(17, 21), (31, 41)] and len(taken[False]) == 4))
PYTHON
