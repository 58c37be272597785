"""Our training step, as `basicsr/train.py` does it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from basicsr.config.load import load_options
from basicsr.data.batch import Batch
from basicsr.distill.contrastive import HybridContrastive, crop_positions
from basicsr.engine.process.distributed import distributed
from basicsr.engine.training_run import TrainingRun
from basicsr.latency.serving import memory
from basicsr.train import train_step
from basicsr.utils import randomness
from basicsr.utils.process_settings import keep_freed_memory


class _NoModules(nullcontext[None]):
    """Replaces `FlopCounterMode`'s module tracker, which raises inside `autograd.grad` for leaves."""

    parents = frozenset({"Global"})
    is_bw = False


class Step:
    """A training run, of which one step is done each time it is asked.

    Args:
        options: a whole options file as plain dicts.
        threads: that PyTorch may use.
        as_users: whether to set up the process as train.py does.
    """

    def __init__(self, options: dict[str, Any], threads: int, as_users: bool = True) -> None:
        torch.set_num_threads(threads)
        if as_users:
            keep_freed_memory()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._stack = ExitStack()
        rank_info = self._stack.enter_context(distributed("none", options["num_gpu"], "gloo", None))
        loaded = load_options(options, training=True)
        self.memory_before = memory()["now"]
        self.training = TrainingRun(loaded, rank_info, None)
        self._batches = iter(self.training.loader)
        self._layout = loaded.channels_last

    def run(self) -> float:
        """A step; returns the seconds it took, from the batch that the loader gave to the updated weights."""
        batches = next(self._batches)
        self._wait()
        started = time.perf_counter()
        self._step(batches)
        self._wait()
        return time.perf_counter() - started

    def peak_memory(self, steps: int) -> int:
        """Bytes that networks and so many steps took at most."""
        for _ in range(steps):
            self.run()
        return memory()["peak"] - self.memory_before

    def flops(self) -> int:
        """Floating point operations of a step, two for a multiply-add."""
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = _NoModules()  # type: ignore[assignment]
        with counter:
            self._step(next(self._batches))
        return int(counter.get_total_flops())

    def losses_to(self, path: str, steps: int) -> list[dict[str, float]]:
        """Writes weights, a batch and the places of its crops to a file; returns the losses of steps on that batch."""
        batches = self._placed(next(self._batches))
        (batch,) = batches
        contrast, run = self._contrast(), self.training
        assert batch.gt is not None and run.teacher is not None and run.adversary is not None
        crop = (contrast.num_patches, *batch.gt.shape[-2:], contrast.patch_size)
        generators = [randomness.generator(int(seed), "contrastive crops") for seed in batch.seeds]
        content = {
            "student": run.network.state_dict(),
            "teacher": run.teacher.network.state_dict(),
            "discriminator": run.adversary.discriminator.state_dict(),
            "image_head": contrast.image_head.state_dict(),
            "patch_head": contrast.patch_head.state_dict(),
            "lq": batch.lq.contiguous(),
            "gt": batch.gt.contiguous(),
            "positions": torch.from_numpy(np.asarray(crop_positions(generators, *crop))),
            "steps": steps,
        }
        torch.save(content, path)
        told = [train_step(self.training, batches)[0] for _ in range(steps)]
        return [{name: float(part) for name, part in parts.items()} for parts in told]

    def _step(self, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        return train_step(self.training, self._placed(batches))[0]

    def _placed(self, batches: Sequence[Batch]) -> list[Batch]:
        return [batch.to(self.training.rank_info.device, self._layout) for batch in batches]

    def _contrast(self) -> HybridContrastive:
        return next(term for term in self.training.terms.values() if isinstance(term, HybridContrastive))

    def _wait(self) -> None:
        if self.training.rank_info.device.type == "cuda":
            torch.cuda.synchronize()
