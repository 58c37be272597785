#!/usr/bin/env bash
# torch 2.13.0: two everyday calls import a compiler on their first use, although nothing is compiled. The first optimizer
# that is made imports torch._dynamo, and with it hundreds of modules; the first torch.autograd.backward that is handed
# a gradient (as for GANs, gradient penalties, pipelines) imports SymPy and torch.fx's symbolic shapes. loss.backward() of
# a scalar does not. Each takes from a few tenths of a second to a second of processor time, in every rank, and shows up as
# a slow first iteration or start of a small run.
# A way around: fold the given gradient into a scalar, (y * gradient).sum().backward(), where that is as fast.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

import torch


def imported(call) -> set[str]:
    """The packages of interest that a call imports; prints how many modules, and in what time."""
    before, start = set(sys.modules), time.process_time()
    call()
    new = set(sys.modules) - before
    print(f"  {len(new)} modules, {time.process_time() - start:.2f} s of processor time")
    return {name for name in ("torch._dynamo", "sympy") if name in new}


print("torch", torch.__version__)
weights = torch.ones(2, requires_grad=True)
print("loss.backward():")
scalar = imported(lambda: (2 * weights).sum().backward())
print("torch.autograd.backward(y, gradient):")
given = imported(lambda: torch.autograd.backward(2 * weights, torch.ones(2)))
print("torch.optim.SGD([weights], lr=0.1):")
optimizer = imported(lambda: torch.optim.SGD([weights], lr=0.1))
print("imported:", scalar, given, optimizer)
sys.exit(not (scalar == set() and given == {"sympy"} and optimizer == {"torch._dynamo"}))
PYTHON
