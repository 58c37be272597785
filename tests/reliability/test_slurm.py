"""The SLURM recipe: signalled, the job saves and queues itself again; started again, it finishes and does not."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from support.jobs import ROOT, TRAIN, Job, send, write_options
from support.kills import live
from support.training import changed, checkpoint_of, differences, free_port

RECIPE = ROOT / "scripts/slurm/train.sbatch"
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 SLURM_NODELIST=localhost
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> scontrol.log
"""


def programs(folder: Path) -> Path:
    """Writes srun (one task) and scontrol, and Python by its usual name."""
    folder.mkdir()
    for name, text in {
        "srun": SRUN,
        "scontrol": SCONTROL,
        "python": f'#!/bin/bash\nexec {sys.executable} "$@"\n',
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def submit(folder: Path, number: int, path: Path) -> Job:
    variables = {"SLURM_JOB_ID": str(number), "TRAIN": TRAIN, "PATH": f"{path}:/usr/bin:/bin"}
    return Job(["bash", str(RECIPE), "options.yml"], folder, variables)


def requeued(folder: Path) -> list[str]:
    log = folder / "scontrol.log"
    return log.read_text().splitlines() if log.exists() else []


def test_a_job_that_is_signalled_queues_itself_again_and_finishes(mcadkd, tmp_path):
    def options(total_iter: int) -> dict[str, Any]:
        return changed(
            mcadkd,
            train__total_iter=total_iter,
            logger__print_freq=1,
            logger__save_checkpoint_freq=1000,
            val__val_freq=5,
            datasets__train__num_worker_per_gpu=1,
        )

    path, number = programs(tmp_path / "bin"), free_port() - 10000
    write_options(options(100_000), tmp_path)
    with submit(tmp_path, number, path) as job:
        job.until(lambda: "iter:       6" in job.output)
        for process in job.processes("SLURM_PROCID"):  # all of the step, the loader's worker too
            send(process, signal.SIGUSR1)
        assert job.wait(60) == 75, job.output
        output = job.output
    iteration = int(output.split("preempted: saved ")[1].split(".state")[0])
    assert iteration >= 6 and requeued(tmp_path) == [f"requeue {number}"]

    write_options(options(iteration + 4), tmp_path)
    with submit(tmp_path, number, path) as job:
        assert job.wait() == 0, job.output
        assert f"Resumed {iteration}.state" in job.output
    assert len(requeued(tmp_path)) == 1, "a run that is done is not queued again"
    assert not live(options(iteration + 4), tmp_path / "whole", 1, {})
    ends = [checkpoint_of(root / "experiments/tiny", iteration + 4) for root in (tmp_path, tmp_path / "whole")]
    assert differences(*ends) == []


@pytest.mark.long
def test_a_job_that_fails_is_not_queued_again(mcadkd, tmp_path):
    write_options(changed(mcadkd, datasets__train__dataroot_lq="nowhere"), tmp_path)
    with submit(tmp_path, 7, programs(tmp_path / "bin")) as job:
        assert job.wait() == 2, job.output
    assert requeued(tmp_path) == []
