"""What the processes of training runs begin with: all that a run imports, and the checks of its options, made once."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
from pathlib import Path

import torch
import torch._dynamo  # DistributedDataParallel imports it when the first one is made
import torch.distributed.tensor
import torch.utils.serialization.config

import basicsr.train  # noqa: F401
from basicsr.config.load import load_options

paths = os.environ.pop("PYTHONPATH").split(os.pathsep)[1:]  # what the processes start shall not find the tests
if paths:
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
torch.set_num_threads(1)
for room in ("archs", "data", "distill", "inference", "losses", "metrics", "models", "optim", "weights"):
    for module in pkgutil.iter_modules(importlib.import_module(f"basicsr.{room}").__path__):
        importlib.import_module(f"basicsr.{room}.{module.name}")
for file in (Path(__file__).resolve().parents[2] / "options/train").glob("*_edsr_x2.yml"):
    load_options(file, training=True, paths=False)
gc.collect()
gc.freeze()  # what is imported stays
