"""Processes and devices: from the launcher's variables to a process group and this rank's device."""

from __future__ import annotations

import datetime
import gc
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from basicsr.engine.stop import deadly_signals
from basicsr.utils.dist_util import gather_objects
from basicsr.utils.errors import MachineError, UserError

Launcher = Literal["none", "pytorch", "slurm"]
_Result = TypeVar("_Result")
_groups = itertools.count()  # a program may train several times
_TIMEOUT = datetime.timedelta(minutes=30)


@dataclass(frozen=True)
class Place:
    """Where this process stands.

    Attributes:
        device: the device that it computes on.
        rank: its number, from 0.
        world_size: how many processes there are.
        remark: what was chosen other than asked for, in one line; empty if nothing.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    remark: str = ""

    @property
    def is_master(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0


@contextmanager
def distributed(launcher: Launcher, num_gpu: int | str, backend: str, port: int | None = None) -> Iterator[Place]:
    """Joins the process group for the duration of a run.

    Args:
        launcher: 'none' for a single process, 'pytorch' under torchrun, 'slurm' under srun.
        num_gpu: 'auto', 0 for the CPU, or the number of GPUs the user counts on.
        backend: 'nccl' or 'gloo'; nccl falls back to gloo where there is no GPU, with a remark.
        port: of rank 0, for slurm where MASTER_PORT is not set.

    Raises:
        MachineError: the launcher's variables are missing, or there are fewer GPUs than local ranks.
    """
    if launcher == "slurm":
        _export_slurm(port)
    rank, local_rank, world_size = _read_environment(launcher)
    if launcher == "slurm" and torch.cuda.device_count() == 1:
        local_rank = 0  # srun gave each task a GPU of its own and shows it that one only
    device, remark = _choose_device(num_gpu, local_rank, world_size)
    if launcher == "none":
        yield Place(device, remark=remark)
        return
    if backend == "nccl" and device.type == "cpu":
        backend, remark = (
            "gloo",
            "; ".join(filter(None, (remark, "dist_params: backend nccl needs GPUs: using gloo"))),
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with deadly_signals():
        store = _store_of_this_start(world_size)
    arguments: dict[str, Any] = {"store": store, "rank": rank, "world_size": world_size} if store is not None else {}
    with deadly_signals():
        dist.init_process_group(backend, timeout=_TIMEOUT, **arguments)
    yield Place(device, rank, world_size, remark)
    # DistributedDataParallel must not outlive the group: as its last owner it would wait, with Python's lock held,
    # for gloo's thread, which may wait for that lock. For the same reason a failed run, whose traceback still holds
    # the model, leaves the group to the end of the process.
    gc.collect()
    dist.destroy_process_group()


def _store_of_this_start(world_size: int) -> dist.Store | None:
    """The store in which the ranks find each other, with names of its own for each start by torchrun.

    torchrun keeps its store over restarts, and in it the addresses of ranks that are gone, to which new ones would
    try to connect. Where there are several nodes, their counts of restarts may differ, and None is returned: PyTorch's
    own way, which is sound where TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 has rank 0 keep the store.
    """
    one_node = os.environ.get("LOCAL_WORLD_SIZE") == str(world_size)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or not one_node:
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, world_size, is_master=False, timeout=_TIMEOUT)
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"start {start}, group {next(_groups)}", store)


def _read_environment(launcher: Launcher) -> tuple[int, int, int]:
    if launcher == "none":
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
            raise MachineError("started by torchrun with several processes but --launcher none: add --launcher pytorch")
        return 0, 0, 1
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise MachineError(
            f"--launcher {launcher}: {', '.join(missing)} not set; start with torchrun --nproc_per_node=N, or use"
            " --launcher none for one process"
        )
    return int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])


def _export_slurm(port: int | None) -> None:
    """Translates srun's variables into those that torch.distributed reads."""
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NODELIST")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise MachineError(f"--launcher slurm: {', '.join(missing)} not set; start with srun")
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
    os.environ.setdefault("MASTER_ADDR", first_slurm_host(os.environ["SLURM_NODELIST"]))
    os.environ.setdefault("MASTER_PORT", str(port or 29500))


def first_slurm_host(node_list: str) -> str:
    """The first host of a SLURM node list: 'gpu[03-05,9],cpu1' gives 'gpu03'."""
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", node_list)
    if match is None:
        raise MachineError(f"SLURM_NODELIST is '{node_list}': no host name in it")
    return match[1] + (match[2] or "")


def _choose_device(num_gpu: int | str, local_rank: int, world_size: int) -> tuple[torch.device, str]:
    available = torch.cuda.device_count()
    if num_gpu == 0:
        return torch.device("cpu"), ""
    if available == 0:
        remark = "" if num_gpu == "auto" else f"num_gpu is {num_gpu} but there is no GPU: using the CPU"
        return torch.device("cpu"), remark
    if local_rank >= available:
        raise MachineError(
            f"local rank {local_rank} has no GPU of its own: this machine has {available}; lower --nproc_per_node,"
            " or set num_gpu: 0 for the CPU"
        )
    remark = ""
    if isinstance(num_gpu, int) and num_gpu > world_size:
        remark = (
            f"num_gpu is {num_gpu} but {world_size} process(es) were started: using {world_size};"
            f" for more, torchrun --nproc_per_node={num_gpu} ... --launcher pytorch"
        )
    return torch.device("cuda", local_rank), remark


def any_rank(flags: Sequence[bool] | torch.Tensor, device: torch.device) -> list[bool]:
    """Which of `flags` are set on any rank. All ranks get the same answer; one small collective and one wait.

    Args:
        flags: as many on all ranks; a tensor, bool (N,), is not waited for before.
        device: this rank's.
    """
    flags = torch.as_tensor(flags, dtype=torch.bool, device=device)
    if dist.is_available() and dist.is_initialized():
        flags = flags.int()
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


@contextmanager
def same_on_all_ranks() -> Iterator[None]:
    """Within the block all ranks do the same with the same, so that one is enough to tell what goes wrong."""
    try:
        yield
    except UserError as error:
        error.known_to_all = True
        raise


def on_master(place: Place, action: Callable[[], _Result]) -> _Result:
    """Runs `action` on rank 0 and returns on every rank what it gave. All ranks must call.

    Args:
        place: where this process stands.
        action: gives plain values.

    Raises:
        UserError: what `action` raised, on every rank.
    """
    outcome: _Result | UserError | None = None
    if place.is_master:
        try:
            outcome = action()
        except UserError as error:
            outcome = error
    outcome = gather_objects(outcome)[0]
    if isinstance(outcome, UserError):
        outcome.known_to_all = True
        raise outcome
    return outcome
