"""What the ranks of a run send each other in a step: `torchrun ... communication.py OPTIONS RESULT`.

Gradients are averaged one bucket after another and waited for, so that their time is their own; in training they
overlap with the backward pass. Of everything else the calls and bytes are counted. The last lines measure the network
between the ranks by itself: one float, and as many bytes as the gradients have.
"""

# Without postponed annotations: DistributedDataParallel compares those of its hook with the types themselves.
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from basicsr.config.load import load_options
from basicsr.engine.process.distributed import distributed
from basicsr.engine.training_run import TrainingRun
from basicsr.train import train_step

STEPS, WARM_UP = 5, 2


class Meter:
    """Adds up the bytes and seconds of collectives."""

    def __init__(self) -> None:
        self.gradient_bytes, self.gradient_seconds, self.other_calls, self.other_bytes = 0, 0.0, 0, 0

    def average(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """DistributedDataParallel's hook: averages a bucket of gradients and waits for it."""
        gradients = bucket.buffer()
        started = time.perf_counter()
        dist.all_reduce(gradients.div_(dist.get_world_size()))
        self.gradient_seconds += time.perf_counter() - started
        self.gradient_bytes += gradients.numel() * gradients.element_size()
        self.other_calls -= 1  # it came through the counter below
        self.other_bytes -= gradients.numel() * gradients.element_size()
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(gradients)
        return future

    def counted(self, collective: Callable[..., Any], position: int) -> Callable[..., Any]:
        """The collective, which also adds up the bytes of its tensor, the argument at `position`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.other_calls += 1
            self.other_bytes += args[position].numel() * args[position].element_size()
            return collective(*args, **kwargs)

        return call


def measure(options: Path) -> dict[str, float]:
    """Runs a few steps and returns what they sent, each figure for one step."""
    loaded = load_options(options, training=True)
    with distributed("pytorch", loaded.num_gpu, "gloo", None) as rank_info:
        run = TrainingRun(loaded, rank_info, None)
        batches = iter(run.loader)
        plain = [_timed(run, batches) for _ in range(WARM_UP + STEPS)][WARM_UP:]
        meter = Meter()
        dist.all_reduce = meter.counted(dist.all_reduce, 0)
        dist.all_gather = meter.counted(dist.all_gather, 1)
        wrapped = [run.model, *(vars(run.adversary).values() if run.adversary is not None else ())]
        for module in wrapped:
            if isinstance(module, DistributedDataParallel):
                module.register_comm_hook(None, meter.average)
        for _ in range(STEPS):
            _timed(run, batches)
        size = meter.gradient_bytes // STEPS
        return {
            "step": statistics.median(plain),
            "gradient_bytes": size,
            "gradient_seconds": meter.gradient_seconds / STEPS,
            "other_calls": meter.other_calls / STEPS,
            "other_bytes": meter.other_bytes / STEPS,
            "latency": _all_reduce_seconds(1),
            "transfer": _all_reduce_seconds(max(1, size // 4)),
        }


def _timed(run: TrainingRun, batches: Any) -> float:
    placed = [batch.to(run.rank_info.device, run.options.channels_last) for batch in next(batches)]
    dist.barrier()
    started = time.perf_counter()
    train_step(run, placed)
    return time.perf_counter() - started


def _all_reduce_seconds(numbers: int) -> float:
    values, taken = torch.zeros(numbers), []
    for _ in range(10):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(values)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = measure(Path(sys.argv[1]))
    if os.environ["RANK"] == "0":
        Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
