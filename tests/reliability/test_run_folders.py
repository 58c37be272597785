"""A run takes the folder of an earlier run of its name, and no other: nothing that it reads is renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.training import changed, without_teacher

from basicsr.archs import build_network
from basicsr.engine.run_folder import RESULTS, RUN, FolderLock, archive
from basicsr.test import test_pipeline as run_test
from basicsr.train import train_pipeline
from basicsr.utils.errors import CheckpointError, OptionsError

TEACHER = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 12, "num_block": 3, "upscale": 2}


def weights(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save({"params": build_network(TEACHER).state_dict()}, path)
    return str(path)


def linked(path: Path, target: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return str(path)


def moved_data(options: dict[str, Any], run: Path) -> dict[str, Any]:
    root = Path(options["datasets"]["train"]["dataroot_gt"])
    shutil.copytree(root, run / "models/HR")
    return changed(options, datasets__train__dataroot_gt=str(run / "models/HR"))


def linked_data(options: dict[str, Any], run: Path) -> dict[str, Any]:
    moved = Path(moved_data(options, run)["datasets"]["train"]["dataroot_gt"])
    for file in moved.iterdir():
        linked(run.parents[1] / "links" / file.name, file)
    return changed(options, datasets__train__dataroot_gt=str(run.parents[1] / "links"))


def named_in_a_list(options: dict[str, Any], run: Path) -> dict[str, Any]:
    names = sorted(path.name for path in Path(options["datasets"]["train"]["dataroot_gt"]).iterdir())
    (run / "models").mkdir(parents=True)
    (run / "models/names.txt").write_text("\n".join(names))
    return changed(options, datasets__train__meta_info_file=str(run / "models/names.txt"))


# What is changed in options of a run whose folder, RUN, is given, and which option the refusal names.
READ: dict[str, tuple[Callable[[dict[str, Any], Path], dict[str, Any]], str]] = {
    "the teacher": (
        lambda o, run: changed(o, path__pretrain_network_t=weights(run / "models/net_g_latest.pth")),
        "path.pretrain_network_t",
    ),
    "the teacher, by a link": (
        lambda o, run: changed(
            o, path__pretrain_network_t=linked(run.parents[1] / "t.pth", Path(weights(run / "models/t.pth")))
        ),
        "path.pretrain_network_t",
    ),
    "the teacher, in a folder linked to": (
        lambda o, run: (
            weights(run / "models/t.pth"),
            changed(o, path__pretrain_network_t=linked(run.parents[1] / "other", run) + "/models/t.pth"),
        )[1],
        "path.pretrain_network_t",
    ),
    "what to start from": (
        lambda o, run: changed(o, path__pretrain_network_g=weights(run / "models/g.pth"), network_g=TEACHER),
        "path.pretrain_network_g",
    ),
    "HR images": (moved_data, "datasets.train.dataroot_gt"),
    "HR images, by links": (linked_data, "datasets.train.dataroot_gt"),
    "a list of names": (named_in_a_list, "datasets.train.meta_info_file"),
}


@pytest.fixture
def options(mcadkd):
    return changed(mcadkd, train__total_iter=1, val__val_freq=1)


def tree(root: Path) -> list[str]:
    return sorted(str(path) for path in root.rglob("*"))


@pytest.mark.parametrize("change, option", READ.values(), ids=READ)
def test_what_is_read_is_not_renamed(options, tmp_path, change, option):
    run = tmp_path / "experiments/tiny"
    given = change(options, run)
    before = tree(tmp_path)
    with pytest.raises(OptionsError, match=rf"^name: tiny: {option} \(\S+\) lies in {run}, which would be renamed"):
        train_pipeline(given, root=tmp_path)
    assert tree(tmp_path) == before


def test_the_options_files_and_the_working_folder_are_not_renamed(options, tmp_path, monkeypatch):
    run = tmp_path / "experiments/tiny"
    (run / "models").mkdir(parents=True)
    base, own = run / "base.yml", tmp_path / "own.yml"
    base.write_text(yaml.safe_dump(options))
    own.write_text(f"_base_: {base}\nname: tiny\n")
    for file in (base, own):
        with pytest.raises(OptionsError, match=rf"the options \({base}\) lies in"):
            train_pipeline(file, root=tmp_path)
    monkeypatch.chdir(run / "models")
    with pytest.raises(OptionsError, match="the working directory"):
        train_pipeline(options, root=tmp_path)


@pytest.mark.parametrize(
    "name, root, said",
    [
        ("pretrained_models", None, r"weights of losses \(\S+\) lies in"),
        (
            "studies",
            None,
            r"experiments/studies is there and holds something else \(a.txt, b.txt, c.txt ...\), so",
        ),
        ("a_file", None, r"cannot read \S+a_file \(Not a directory\)"),
        ("curves", None, r"tb_logger/curves is there and holds something else \(photo.png\)"),
        ("tb_logger", "experiments", "its folder would be .*, where TensorBoard files of all runs lie"),
    ],
)
def test_what_is_no_runs_folder_is_not_renamed(options, tmp_path, name, root, said):
    for file in ("pretrained_models/teacher.pth", "studies/a.txt", "studies/b.txt", "studies/c.txt", "studies/d.txt"):
        (tmp_path / "experiments" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "experiments" / file).write_text("mine")
    (tmp_path / "experiments/a_file").write_text("mine")
    (tmp_path / "tb_logger/curves").mkdir(parents=True)
    (tmp_path / "tb_logger/curves/photo.png").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises((OptionsError, CheckpointError), match=said):
        train_pipeline(changed(options, name=name, path__experiments_root=root), root=tmp_path)
    assert tree(tmp_path) == before


def test_a_runs_folder_is_renamed_still(options, tmp_path):
    scratch = without_teacher(options)
    train_pipeline(scratch, root=tmp_path)
    result = train_pipeline(scratch, root=tmp_path)
    (kept,) = (tmp_path / "experiments").glob("tiny_archived_*")
    assert (kept / "models/net_g_1.pth").exists() and (result.folder / "models/net_g_1.pth").exists()
    assert not list(tmp_path.rglob(".*"))


def test_a_teacher_may_not_come_to_lie_in_the_folder_of_a_run_that_goes_on(options, tmp_path):
    train_pipeline(options, root=tmp_path)
    own = weights(tmp_path / "experiments/tiny/models/net_g_latest.pth")
    with pytest.raises(OptionsError, match=r"path.pretrain_network_t \(\S+\) lies in"):
        train_pipeline(changed(options, path__pretrain_network_t=own), root=tmp_path, auto_resume=True)


@pytest.fixture
def testing(options, tmp_path) -> dict[str, Any]:
    path = weights(tmp_path / "weights.pth")
    kept = {key: options[key] for key in ("name", "scale", "num_gpu")}
    return {
        **kept,
        "datasets": {"test": options["datasets"]["val"]},
        "val": {"metrics": options["val"]["metrics"]},
        "networks": {"row": {"path": path}},
        "report": {"html": False, "plots": False, "speed": False},
    }


def test_results_take_no_others_folder(testing, tmp_path):
    results = tmp_path / "results/tiny"
    inside = weights(results / "visualization/w.pth")
    with pytest.raises(OptionsError, match=r"name: tiny: networks.row.path \(\S+\) lies in"):
        run_test(changed(testing, networks__row__path=inside), root=tmp_path)
    run = tmp_path / "experiments/tiny"
    (run / "models").mkdir(parents=True)
    (run / "visualization").mkdir()
    with pytest.raises(OptionsError, match=r"experiments/tiny is there and holds something else \(models, vis"):
        run_test({**testing, "path": {"results_root": str(run.parent)}}, root=tmp_path)
    shutil.rmtree(results)
    (results / "holiday").mkdir(parents=True)
    with pytest.raises(OptionsError, match=r"results/tiny is there and holds something else \(holiday\)"):
        run_test(testing, root=tmp_path)
    (results / "holiday").rmdir()
    for _ in range(2):
        run_test(testing, root=tmp_path)
    assert [path.name.split("_")[0] for path in sorted((tmp_path / "results").iterdir())] == ["tiny"] * 2


def test_two_tests_do_not_write_into_one_folder(testing, tmp_path):
    child = os.fork()
    if child == 0:
        try:
            run_test({**testing, "path": {"results_root": str(tmp_path / "link")}}, root=tmp_path)
        except CheckpointError as error:
            (tmp_path / "told").write_text(str(error))
        os._exit(0)
    os.waitpid(child, 0)
    assert not (tmp_path / "told").exists(), "the folder was free"
    lock = FolderLock(tmp_path / "link/tiny", "writes its results there")
    (tmp_path / "again").symlink_to(tmp_path / "link")
    child = os.fork()
    if child == 0:
        try:
            run_test({**testing, "path": {"results_root": str(tmp_path / "again")}}, root=tmp_path)
        except CheckpointError as error:
            (tmp_path / "told").write_text(str(error))
        os._exit(0)
    os.waitpid(child, 0)
    lock.close()
    assert f"again/tiny is in use: process {os.getpid()} on " in (tmp_path / "told").read_text()


def test_links_are_renamed_and_not_what_they_lead_to(tmp_path):
    real = tmp_path / "disk/run"
    (real / "models").mkdir(parents=True)
    (tmp_path / "run").symlink_to(real)
    archive(tmp_path / "run", RUN)
    assert not os.path.lexists(tmp_path / "run") and (real / "models").is_dir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "empty")
    archive(tmp_path / "run", RUN)
    assert (tmp_path / "run").is_symlink(), "an empty folder on another disk is taken as it is"
    with pytest.raises(OptionsError, match="holds something else"):
        archive(real, RESULTS, never=RUN)
