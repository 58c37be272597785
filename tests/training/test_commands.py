"""The commands as users type them: real processes, exit codes, one line for a mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support.training import changed, free_port

from basicsr import test, train
from basicsr.engine.process.command import run_command

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "basicsr/train.py")


def write(options: dict, folder: Path) -> str:
    file = folder / "options.yml"
    file.write_text(yaml.safe_dump(options))
    return str(file)


# Sums over several threads round otherwise than over one: runs that are compared must have equally many.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*command: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def failure(main, capsys, *arguments: str) -> tuple[int, list[str]]:
    """Exit code and lines on standard error of a command run in this process."""
    code = run_command(lambda: main(list(arguments)))
    return code, capsys.readouterr().err.strip().splitlines()


def test_torchrun_trains_tests_and_leaves_what_basicsr_leaves(mcadkd, tmp_path):
    file = write(changed(mcadkd, logger__use_tb_logger=True, dist_params__backend="nccl"), tmp_path)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}")
    done = run(*torchrun, TRAIN, "-opt", file, "--launcher", "pytorch", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "using gloo" in done.stderr + done.stdout
    doubt = "train.scheduler.milestones: [10, 30] is not reached within total_iter 8"
    experiment = tmp_path / "experiments/tiny"
    assert {path.name for path in (experiment / "models").iterdir()} == {
        *(f"net_{label}_{iteration}.pth" for label in "gd" for iteration in (4, 8)),
        "net_g_latest.pth",
        "net_g_best.pth",
    }
    assert list(tmp_path.glob("tb_logger/tiny/events*"))
    log = next(experiment.glob("train_tiny_*.log")).read_text()
    assert "Validation val (3 images), iter 8: psnr" in log
    assert (done.stderr + done.stdout).count(doubt) == log.count(doubt) == 1, "told by one rank, and kept"
    weights = torch.load(experiment / "models/net_g_8.pth", weights_only=True)
    assert set(weights) == {"params", "params_ema", "network", "training"}

    testing = {key: mcadkd[key] for key in ("name", "scale", "num_gpu", "network_g", "val")}
    testing["datasets"] = {"test_1": mcadkd["datasets"]["val"]}
    testing["path"] = {"pretrain_network_g": str(experiment / "models/net_g_8.pth"), "param_key_g": "params_ema"}
    file = write(changed(testing, val__val_freq=None, val__save_img=True), tmp_path)
    done = run(sys.executable, str(ROOT / "basicsr/test.py"), "-opt", file, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "val PSNR/SSIM" in (tmp_path / "results/tiny/summary.md").read_text()
    lines = (tmp_path / "results/tiny/metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 3
    assert len(list((tmp_path / "results/tiny/visualization/val").glob("*.png"))) == 3


def test_training_imports_neither_the_compiler_nor_sympy(mcadkd, tmp_path):
    """Either takes half of the time that a run needs until its first iteration; adversary and optimizers did both."""
    file = write(changed(mcadkd, train__total_iter=1), tmp_path)
    code = "import sys; from basicsr.train import train_pipeline; train_pipeline(sys.argv[1])"
    code += "; print('loaded:', {'torch._dynamo', 'sympy'} & set(sys.modules))"
    done = run(sys.executable, "-c", code, file, folder=tmp_path)
    assert done.stdout.splitlines()[-1:] == ["loaded: set()"], done.stderr


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"network_g": {"type": "EDSRR", "upscale": 2}}, 2, "did you mean 'EDSR'"),
        ({"datasets__train__dataroot_lq": "nowhere"}, 2, "nowhere"),
        ({"train__contrastive_opt": {"type": "hybrid", "patch_size": 64}}, 2, "patch_size"),
        ({"path": {"pretrain_network_t": "no_teacher.pth"}}, 2, "no_teacher.pth"),
    ],
)
def test_mistakes_in_options_end_in_a_line_each(mcadkd, tmp_path, monkeypatch, capsys, changes, code, message):
    monkeypatch.chdir(tmp_path)
    returned, lines = failure(train.main, capsys, "-opt", write(changed(mcadkd, **changes), tmp_path))
    assert returned == code
    assert any(message in line for line in lines), lines
    assert not any(line.startswith("Traceback") for line in lines)
    assert not (tmp_path / "experiments").exists()


def test_images_that_do_not_fit_are_told_once_with_a_count_before_the_run_begins(mcadkd, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = write(changed(mcadkd, datasets__train__gt_size=64), tmp_path)
    code, lines = failure(train.main, capsys, "-opt", file)
    assert code == 3 and len([line for line in lines if line.startswith("error: ")]) == 1
    (example,) = [line for line in lines if "64" in line]
    assert "img000" in example and "lower gt_size" in example
    assert any("and 6 more pairs like it (img001.png, img002.png, img003.png, ...)" in line for line in lines)
    assert not (tmp_path / "experiments").exists()


def test_a_teacher_for_another_network_names_keys_and_shapes(mcadkd, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    from basicsr.archs import build_network

    teacher = build_network({**mcadkd["network_t"], "num_feat": 16})
    torch.save({"params": teacher.state_dict()}, tmp_path / "teacher.pth")
    path = {"pretrain_network_t": str(tmp_path / "teacher.pth")}
    code, lines = failure(train.main, capsys, "-opt", write(changed(mcadkd, path=path), tmp_path))
    assert code == 4
    summary = next(line for line in lines if line.startswith("error: "))
    assert "for another EDSR: it has 16 channels, the options say 12 channels" in summary
    assert "  conv_first.weight    (16, 3, 3, 3)   (12, 3, 3, 3)" in lines


def test_a_loss_that_is_not_finite_stops_before_the_update(mcadkd, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    steps = {"train__optim_g": {"type": "SGD", "lr": 100}, "train__pixel_opt": {"type": "L1Loss", "loss_weight": 1e6}}
    file = write(changed(mcadkd, train__adversarial_opt=None, network_d=None, **steps), tmp_path)
    code, lines = failure(train.main, capsys, "-opt", file)
    assert code == 5
    assert "nothing was updated" in lines[-1] and "iteration" in lines[-1] and "img" in lines[-1]


def test_testing_without_hr_images_saves_images(mcadkd, tmp_path):
    options = {
        "name": "only_lr",
        "scale": 2,
        "num_gpu": 0,
        "datasets": {
            "test": {
                "name": "photos",
                "type": "SingleImageDataset",
                "dataroot_lq": mcadkd["datasets"]["val"]["dataroot_lq"],
                "io_backend": {"type": "disk"},
            }
        },
        "networks": {"bicubic": {"type": "bicubic"}},
    }
    rows = test.test_pipeline(options, root=tmp_path).scales[0].rows
    assert rows[0].evaluations["photos"].metrics == ()
    assert len(list((tmp_path / "results/only_lr/visualization/bicubic/photos").glob("*.png"))) == 3
    assert np.isfinite(rows[0].evaluations["photos"].seconds).all()
