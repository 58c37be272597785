"""Processes and devices: from the launcher's variables to ranks that run the same and each one's device."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

import basicsr
from basicsr.config.schema import DistOptions, Options, flat, thaw
from basicsr.engine.process.command import deadly_signals
from basicsr.engine.process.meeting import (
    COLLECTIVE_TIMEOUT,
    OPTIONS,
    Meeting,
    Start,
    differences,
    read_launched_rank,
)
from basicsr.engine.process.rank_watchdog import Process, RankWatchdog, following, this_process
from basicsr.utils.dist_util import gather_objects, get_dist_info, raise_together
from basicsr.utils.errors import DataError, MachineError, UserError

Launcher = Literal["none", "pytorch", "slurm"]
_NO_START = Start({}, {})
_PACKAGE = Path(basicsr.__file__).parent
_groups = itertools.count()  # a program may train several times


@dataclass(frozen=True)
class RankInfo:
    """Which process this is, from rank 0, and the device that it computes on."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    remark: str = ""  # where another device or backend was chosen than asked for
    watch: RankWatchdog | None = field(default=None, repr=False, compare=False)  # over the other ranks, if any

    @property
    def is_master(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0


@contextmanager
def joined(
    launcher: Launcher, load: Callable[[], Sequence[Options]], flags: Mapping[str, Any]
) -> Iterator[tuple[Sequence[Options], RankInfo]]:
    """Loads the options, one for each scale, and joins the ranks if these and `flags` are the same on all."""
    options: Sequence[Options] = ()
    failure: UserError | None = None
    try:
        options = load()
    except UserError as error:
        failure = error
    start = Start({}, {}, failure)
    if launcher != "none":
        named: dict[str, Any] = {}
        for one in options:
            named |= flat(thaw(one), f"x{one.scale}: " if len(options) > 1 else "")
        code = hashlib.sha256()
        for file in sorted(_PACKAGE.rglob("*.py")):
            content = file.read_bytes()
            code.update(os.fsencode(f"{file.relative_to(_PACKAGE).as_posix()} {len(content)} ") + content)
        facts = {
            "basicsr": basicsr.__version__,
            "PyTorch": torch.__version__,
            "code of basicsr (SHA-256 of its files)": code.hexdigest()[:12],
            **{name: str(value) for name, value in flags.items()},
            OPTIONS: hashlib.sha256(json.dumps(named, default=str).encode()).hexdigest(),
        }
        start = Start(facts, named, failure)
    params, num_gpu = (options[0].dist_params, options[0].num_gpu) if options else (DistOptions(), 0)
    timeouts = {"timeout": params.timeout, "join_timeout": params.join_timeout}
    with distributed(launcher, num_gpu, params.backend, params.port, **timeouts, start=start) as rank_info:
        yield options, rank_info


@contextmanager
def distributed(
    launcher: Launcher,
    num_gpu: int | str,
    backend: str,
    port: int | None = None,
    *,
    timeout: float = 60.0,
    join_timeout: float = 120.0,
    start: Start = _NO_START,
) -> Iterator[RankInfo]:
    """Joins the process group for the duration of a run, if all ranks begin the same, which `start` says.

    The launcher 'none' is for a single process, 'pytorch' for torchrun, 'slurm' for srun. Without a GPU, nccl is
    replaced by gloo, with a remark. Raises MachineError where the launcher's variables are missing or wrong, ranks do
    not come within `join_timeout` seconds, or there are fewer GPUs than local ranks; any other UserError that keeps a
    rank from starting, on all of them.
    """
    if launcher == "none":
        if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
            several = MachineError(
                "started by torchrun with several processes but --launcher none: add --launcher pytorch"
            )
            several.known_to_all = True
            raise several
        if start.failure is not None:
            raise start.failure
        device, remark = _choose_device(num_gpu, 0, 1)
        yield RankInfo(device, remark=remark)
        return
    here = read_launched_rank(launcher, port)
    device, remark = torch.device("cpu"), ""
    if start.failure is None:
        # srun may give each task a GPU of its own, and show it that one only
        local = 0 if launcher == "slurm" and torch.cuda.device_count() == 1 else here.local_rank
        try:
            device, remark = _choose_device(num_gpu, local, here.world_size)
        except MachineError as error:
            start = start._replace(failure=error)
    if backend == "nccl" and device.type == "cpu":
        backend, fallback = "gloo", "dist_params: backend nccl needs GPUs: using gloo"
        remark = "; ".join(filter(None, (remark, fallback)))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    meeting = Meeting(here, join_timeout, str(next(_groups)))
    watchdog: RankWatchdog | None = None
    try:
        facts = {**start.facts, "kind of device": device.type, "dist_params: backend": backend}
        processes = [Process(*process) for process in meeting.join(start._replace(facts=facts), this_process())]
        watchdog = RankWatchdog(meeting, processes, timeout)
        size = here.world_size
        with deadly_signals(), following(watchdog):
            dist.init_process_group(
                backend, timeout=COLLECTIVE_TIMEOUT, store=meeting.store, rank=here.rank, world_size=size
            )
        yield RankInfo(device, here.rank, size, remark, watchdog)
        # DistributedDataParallel must not outlive the group: as its last owner it would wait, with Python's lock held,
        # for gloo's thread, which may wait for that lock. For the same reason a failed run, whose traceback still holds
        # the model, leaves the group to the end of the process.
        gc.collect()
        dist.destroy_process_group()
    except BaseException as error:
        (watchdog or meeting).leave(error)
        raise
    watchdog.leave()


def _choose_device(num_gpu: int | str, local_rank: int, world_size: int) -> tuple[torch.device, str]:
    available = torch.cuda.device_count()
    if num_gpu == 0:
        return torch.device("cpu"), ""
    if available == 0:
        remark = "" if num_gpu == "auto" else f"num_gpu is {num_gpu} but there is no GPU: using the CPU"
        return torch.device("cpu"), remark
    if local_rank >= available:
        problem = f"local rank {local_rank} has no GPU of its own: this machine has {available}"
        raise MachineError(f"{problem}; lower --nproc_per_node, or set num_gpu: 0 for the CPU")
    remark = ""
    if isinstance(num_gpu, int) and num_gpu > world_size:
        remark = f"num_gpu is {num_gpu} but {world_size} process(es) were started: using {world_size}"
        remark += f"; for more, torchrun --nproc_per_node={num_gpu} ... --launcher pytorch"
    return torch.device("cuda", local_rank), remark


def require_equal(compute: Callable[[], Mapping[str, Any]]) -> None:
    """Raises DataError on all ranks unless `compute` returns the same plain values there. All must call."""
    if get_dist_info()[1] == 1:
        return
    values: Mapping[str, Any] = {}
    failure: UserError | None = None
    try:
        values = flat(compute())
    except UserError as error:
        failure = error
    raise_together(failure)
    if lines := differences(dict(enumerate(gather_objects(values))), "none"):
        listed = "\n  ".join(("the ranks do not work on the same:", *lines))
        disagreement = DataError(f"{listed}\ngive all of them the same files")
        disagreement.known_to_all = True
        raise disagreement


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of a module's names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
