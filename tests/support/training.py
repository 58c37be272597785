"""Small real training runs, in processes of their own that start from a parent with PyTorch imported.

What runs in those processes stands here, where they can import it.
"""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.images import PSNR, Pairs
from torch import nn

from basicsr.config.load import load_options
from basicsr.config.schema import Options
from basicsr.engine.process import command
from basicsr.engine.process.command import StopRequest
from basicsr.engine.process.distributed import RankInfo, distributed, require_equal, weights_digest
from basicsr.engine.training_run import TrainingRun
from basicsr.metrics.evaluator import evaluate
from basicsr.train import train_pipeline, train_step
from basicsr.utils.dist_util import any_rank, gather_objects

TESTS = str(Path(__file__).resolve().parents[1])
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["support.preloaded"])


def changed(options: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A deep copy of `options` with changes such as `train__total_iter=3`; None removes the key."""
    result = copy.deepcopy(dict(options))
    for path, value in changes.items():
        *parents, key = path.split("__")
        section = result
        for parent in parents:
            section = section[parent]
        section.pop(key, None) if value is None else section.update({key: value})
    return result


def without_teacher(options: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The run's student alone, with its pixel loss only."""
    return changed(
        options,
        model_type="SRModel",
        network_t=None,
        network_d=None,
        train__resp_kd_opt=None,
        train__contrastive_opt=None,
        train__adversarial_opt=None,
        **changes,
    )


def start(function: Callable[..., None], *arguments: Any) -> Any:
    """Starts `function` in a process of its own, as leader of a process group, and returns the process."""
    process = PROCESSES.Process(target=_enter, args=(function, arguments))
    launch(process)
    return process


def launch(process: Any) -> None:
    """Starts a process; the parent of all, which the first one starts, finds `support` by its environment alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", TESTS, prepend=os.pathsep)
        process.start()


def free_port(following: int = 0) -> int:
    """A port that nothing listens on, nor on as many `following` it.

    It is below those that systems give to connections of their own accord, and of a range that no other worker of
    pytest-xdist takes from.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    first = 12000 + 2000 * worker
    while True:
        port = first + secrets.randbelow(2000 - following)
        if all(map(_is_free, range(port, port + following + 1))):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def run_ranks(function: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """Runs `function(rank, *arguments)` in `world_size` processes with torchrun's variables; all must succeed.

    MASTER_PORT is the first of a hundred free ones.
    """
    port = free_port(following=99)
    processes = [
        PROCESSES.Process(target=enter_rank, args=(function, rank, world_size, port, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        launch(process)
    running = list(processes)
    while running:
        ended = wait([process.sentinel for process in running], timeout=300)
        running = [process for process in running if process.sentinel not in ended]
        failed = not ended or any(process.exitcode for process in processes if process.sentinel in ended)
        for process in running if failed else ():  # they would wait for the one that is gone
            process.join(10)
            process.kill()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * world_size


def _enter(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    torch.set_num_threads(1)
    _register()
    function(*arguments)


def enter_rank(
    function: Callable[..., None], rank: int, world_size: int, port: int, arguments: tuple[Any, ...]
) -> None:
    """Calls `function(rank, *arguments)` with torchrun's variables set; to be the target of a process."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    _register()
    function(rank, *arguments)


def _register() -> None:
    """Losses and datasets of the tests are known here only, not in the process in which the tests run."""
    for module in ("support.losses", "support.datasets"):
        importlib.import_module(module)


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Paths at which two loaded checkpoints differ in any bit of a tensor, or in a value."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape and torch.equal(_bits(first), _bits(second))
        return [] if same else [path]
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if list(first) != list(second):
            return [f"{path}: keys {sorted(map(str, set(first) ^ set(second)))}"]
        return [found for key in first for found in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        return [
            found
            for index, pair in enumerate(zip(first, second, strict=True))
            for found in differences(*pair, f"{path}/{index}")
        ]
    return [] if type(first) is type(second) and first == second else [path]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)  # a side of 1 may have any stride, even so


def checkpoint_of(experiment: Path, iteration: int) -> dict[str, Any]:
    """All that a checkpoint holds, except the options' text and what names the folder."""
    files = {
        "g": experiment / f"models/net_g_{iteration}.pth",
        "d": experiment / f"models/net_d_{iteration}.pth",
        "state": experiment / f"training_states/{iteration}.state",
    }
    loaded = {name: torch.load(file, weights_only=True) for name, file in files.items() if file.exists()}
    loaded["state"].pop("options")
    return loaded


def train(options: dict[str, Any], root: str) -> None:
    """Trains on, from the newest checkpoint if there is one."""
    train_pipeline(options, auto_resume=True, root=root)


def train_each(runs: list[dict[str, Any]], root: str) -> None:
    """As `train`, for one run after the other."""
    for options in runs:
        train(options, root)


def told(options: dict[str, Any], root: Path, **arguments: Any) -> tuple[int, str]:
    """Trains in a process of its own, as the command does; its exit code and what it wrote to standard error."""
    errors = root / f"stderr_{secrets.token_hex(4)}.txt"
    root.mkdir(parents=True, exist_ok=True)
    process = start(run_as_command, options, str(root), str(errors), arguments)
    process.join()
    return process.exitcode, errors.read_text()


def told_by_ranks(rank: int, options: dict[str, Any], root: str, arguments: dict[str, Any]) -> None:
    """As `told`, as one of several ranks: leaves ROOT/told.RANK, whose first line is the exit code."""
    errors = Path(root) / f"stderr.{rank}"
    command._GRACE_SECONDS = 0.0  # there is no torchrun that would stop the others
    try:
        run_as_command(options, root, str(errors), {"launcher": "pytorch", **arguments})
    except SystemExit as end:
        (Path(root) / f"told.{rank}").write_text(f"{end.code}\n{errors.read_text()}")


def run_as_command(options: dict[str, Any], root: str, errors: str, arguments: dict[str, Any]) -> None:
    """Trains as the command does, with standard error in a file, and ends this process with the command's code."""
    with open(errors, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 2)

    def main() -> int:
        train_pipeline(options, root=root, **arguments)
        return 0

    sys.exit(command.run_command(main))


def train_rank_all(rank: int, runs: list[dict[str, Any]], root: str) -> None:
    """As `train`, as one of several ranks, for one run after the other."""
    first_port = int(os.environ["MASTER_PORT"])
    for index, options in enumerate(runs):
        os.environ["MASTER_PORT"] = str(first_port + index)  # the last run's store may not be gone yet
        train_pipeline(options, launcher="pytorch", auto_resume=True, root=root)


def finish(options: dict[str, Any], root: Path) -> dict[str, Any]:
    """Trains to the end in a process of its own and returns the last checkpoint."""
    process = start(train, options, str(root))
    process.join()
    assert process.exitcode == 0
    return checkpoint_of(root / "experiments" / options["name"], options["train"]["total_iter"])


def record_steps(rank: int, options: dict[str, Any], launcher: str, iterations: int, out: str) -> None:
    """Takes `iterations` steps and saves OUT.RANK: losses averaged over ranks at each step, and all weights."""
    loaded = load_options(options, training=True, root=Path(out).parent)
    with StopRequest() as stop, distributed(launcher, 0, "gloo") as rank_info:
        torch.save(_steps(loaded, rank_info, stop, iterations), f"{out}.{rank}")


def _steps(options: Options, rank_info: RankInfo, stop: StopRequest, iterations: int) -> dict[str, Any]:
    run = TrainingRun(options, rank_info, None)
    history = []
    for _, batches in zip(range(iterations), run.loader, strict=False):
        parts, _ = train_step(run, [batch.to(rank_info.device) for batch in batches])
        stacked = torch.stack([part.double() for part in parts.values()])
        history.append(dict(zip(parts, torch.stack(gather_objects(stacked)).mean(0).tolist(), strict=True)))
    weights = {
        "student": run.network.state_dict(),
        "heads": run.terms.state_dict(),
        "ema": run.ema.network.state_dict(),
        "discriminator": dict(run.adversary.discriminator.named_parameters()) if run.adversary else {},
    }
    return {"history": history, "weights": weights}


def slurm_task(rank: int, folder: str) -> None:
    """Joins a group as srun's task and leaves a file named after what it found; only rank 1 raises a flag."""
    world_size = os.environ["WORLD_SIZE"]
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"):
        del os.environ[name]
    os.environ.update(
        SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), SLURM_NTASKS=world_size, SLURM_NODELIST="localhost"
    )
    with distributed("slurm", 0, "gloo") as rank_info:
        flags = any_rank([rank_info.rank == 1, False], rank_info.device)
        (Path(folder) / f"{rank_info.rank} of {rank_info.world_size}: {flags}").touch()


def evaluate_rank(rank: int, count: int, out: str) -> None:
    """Evaluates the metric tests' images as one of several ranks and saves the figures as OUT.RANK.npy."""
    with distributed("pytorch", 0, "gloo") as rank_info:
        evaluation = evaluate(nn.Identity(), Pairs(count), PSNR, rank_info.device)
        assert evaluation is not None
        np.save(f"{out}.{rank_info.rank}", evaluation.values)


def told_by_different_ranks(rank: int, options: list[dict[str, Any]], root: str, arguments: dict[str, Any]) -> None:
    """As `told_by_ranks`, each rank with options of its own."""
    told_by_ranks(rank, options[rank], root, arguments)


def evaluate_different_sets(rank: int, counts: list[int], out: str) -> None:
    """Evaluates as many images as the rank's entry says, and leaves what came of it in OUT.RANK."""
    with distributed("pytorch", 0, "gloo") as rank_info:
        try:
            evaluate(nn.Identity(), Pairs(counts[rank]), PSNR, rank_info.device)
        except ValueError as error:
            Path(f"{out}.{rank}").write_text(str(error))


def weights_of_their_own(rank: int, out: str) -> None:
    """Compares weights that one rank has made from another seed, and leaves what came of it in OUT.RANK."""
    torch.manual_seed(rank)
    network = nn.Linear(2, 2)
    with distributed("pytorch", 0, "gloo"):
        try:
            require_equal(lambda: {"same": 1, "weights": weights_digest(network)})
        except ValueError as error:
            Path(f"{out}.{rank}").write_text(str(error))


def told_in_own_folders(rank: int, options: dict[str, Any], root: str, arguments: dict[str, Any]) -> None:
    """As `told_by_ranks`, each rank in its own folder ROOT/nodeRANK, as on machines with disks of their own."""
    os.chdir(f"{root}/node{rank}")
    told_by_ranks(rank, options, root, arguments)
