"""Launchers and devices."""

from __future__ import annotations

import pytest
import torch
from support.training import run_ranks, slurm_task

from basicsr.engine.process.distributed import distributed
from basicsr.engine.process.meeting import first_slurm_host
from basicsr.utils.dist_util import any_rank
from basicsr.utils.errors import MachineError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_one_process_needs_no_launcher():
    with distributed("none", 0, "nccl") as place:
        assert (place.device, place.rank, place.world_size, place.is_master) == (
            torch.device("cpu"),
            0,
            1,
            True,
        )
        assert any_rank([True, False], place.device) == [True, False]


@pytest.mark.parametrize(
    ("launcher", "message"),
    [("pytorch", "RANK, LOCAL_RANK.*start with torchrun"), ("slurm", "SLURM_PROCID.*start with srun")],
)
def test_a_missing_launcher_is_named(launcher, message):
    with pytest.raises(MachineError, match=message), distributed(launcher, 0, "gloo"):
        pass


def test_torchrun_without_the_launcher_option_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(MachineError, match="add --launcher pytorch"), distributed("none", 0, "gloo"):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_asked_for_in_vain_are_told():
    with distributed("none", 4, "nccl") as place:
        assert place.remark == "num_gpu is 4 but there is no GPU: using the CPU"


@pytest.mark.parametrize(
    ("nodes", "host"), [("gpu[03-05,9],cpu1", "gpu03"), ("node7", "node7"), ("a-1,b-2", "a-1"), ("n[12]", "n12")]
)
def test_the_first_host_of_a_slurm_list(nodes, host):
    assert first_slurm_host(nodes) == host


def test_slurm_tasks_find_each_other(tmp_path):
    run_ranks(slurm_task, 2, str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"0 of 2: [True, False]", "1 of 2: [True, False]"}
