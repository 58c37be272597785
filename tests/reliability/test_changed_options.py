"""A resumed run is the run that was begun, or says what is not; the order of samples knows no ranks."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from support.registering import registered
from support.training import changed, finish, run_ranks, start, told, told_by_ranks, train
from torch import nn

from basicsr.archs import build_network
from basicsr.config.load import load_options, resolved_yaml, todays_text
from basicsr.data.sampling import KeySampler
from basicsr.distill.base import LossTerm, StepContext
from basicsr.engine.checkpoint import Checkpoint, CheckpointFolder
from basicsr.engine.inputs import input_digests
from basicsr.engine.process.distributed import RankInfo
from basicsr.engine.resuming import check_options
from basicsr.losses.basic_loss import L1Loss
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import LOSS_REGISTRY, METHOD_REGISTRY

REFUSAL = "since 4.state was saved, this has changed and makes it another experiment:"


@pytest.fixture
def options(mcadkd):
    return changed(mcadkd, train__total_iter=4, val__val_freq=4)


@pytest.fixture
def begun(options, tmp_path):
    """A run that has saved 4.state."""
    finish(options, tmp_path)
    return changed(options, train__total_iter=5)


GRAVE = {
    "train.optim_g.lr: 0.001 -> 0.002": {"train__optim_g__lr": 2e-3},
    "manual_seed: 3 -> 4": {"manual_seed": 4},
    "train.pixel_opt.loss_weight: 3.0 -> 2.0": {"train__pixel_opt__loss_weight": 2.0},
    "network_g.num_feat: 8 -> 12": {"network_g__num_feat": 12},
    "amp: none -> bf16": {"amp": "bf16"},
    "datasets.train.use_rot: True -> False": {"datasets__train__use_rot": False},
    "train.distill.contrastive.embed_dim: 16 -> 8": {"train__contrastive_opt__embed_dim": 8},
    "train.ema_decay: 0.9 -> 0.99": {"train__ema_decay": 0.99},
    "images to an iteration: 2 (1 rank x 2) -> 3 (1 rank x 3)": {"datasets__train__batch_size_per_gpu": 3},
    "images to an iteration: 2 (1 rank x 2) -> 4 (1 rank x 2 batches x 2)": {"train__accumulate": 2},
}


def test_all_that_makes_it_another_experiment_is_listed_at_once_and_refused(begun, tmp_path):
    together = {
        key: value for line, changes in GRAVE.items() if "batches" not in line for key, value in changes.items()
    }
    before = sorted(tmp_path.rglob("experiments/**/*"))
    code, errors = told(changed(begun, **together), tmp_path, auto_resume=True)
    assert code == 2
    assert errors.startswith(f"error: {REFUSAL}\n")
    listed = [line.strip() for line in errors.splitlines()[1:-1]]
    assert sorted(listed) == sorted(line for line in GRAVE if "batches" not in line)
    assert errors.splitlines()[-1].startswith("put it back, or go on all the same with --allow_config_change")
    assert sorted(tmp_path.rglob("experiments/**/*")) == before, "nothing was written"


@pytest.mark.parametrize("line", ["images to an iteration: 2 (1 rank x 2) -> 4 (1 rank x 2 batches x 2)"])
def test_more_batches_to_an_iteration_are_refused(begun, tmp_path, line):
    code, errors = told(changed(begun, **GRAVE[line]), tmp_path, auto_resume=True)
    assert (code, errors.splitlines()[:2]) == (2, [f"error: {REFUSAL}", f"  {line}"])


@pytest.mark.parametrize(
    "line, changes", [("train.optim_g.lr: 0.001 -> 0.002", {}), ("amp: none -> fp16", {"amp": "fp16"})]
)
def test_allow_config_change_goes_on_and_notes_the_changes(begun, tmp_path, line, changes):
    code, errors = told(
        changed(begun, **(changes or GRAVE[line])), tmp_path, auto_resume=True, allow_config_change=True
    )
    assert code == 0
    assert f"WARNING: changed since 4.state was saved: {line}" in errors
    assert "Resumed 4.state at iteration 4" in errors


def test_what_does_not_touch_the_course_of_training_may_change(begun, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "data", moved)
    new = changed(
        begun,
        datasets__train__dataroot_gt=str(moved / "HR"),
        datasets__train__dataroot_lq=str(moved / "LR_X2"),
        datasets__train__num_worker_per_gpu=1,
        logger__print_freq=1,
        val__val_freq=5,
    )
    code, errors = told(new, tmp_path, auto_resume=True)
    assert code == 0, errors
    for line in (
        f"datasets.train.dataroot_gt: {tmp_path / 'data/HR'} -> {moved / 'HR'}",
        "datasets.train.num_worker_per_gpu: 0 -> 1",
        "logger.print_freq: 4 -> 1",
        "train.total_iter: 4 -> 5",
    ):
        assert f"changed since 4.state was saved: {line}" in errors


def test_other_images_in_the_same_folder_are_noticed(begun, tmp_path):
    for folder, name, side in (("HR", "one_more.png", 48), ("LR_X2", "one_morex2.png", 24)):
        cv2.imwrite(str(tmp_path / "data" / folder / name), np.zeros((side, side, 3), np.uint8))
    code, errors = told(begun, tmp_path, auto_resume=True)
    assert code == 2
    assert "  training images: images 7 -> 8" in errors.splitlines()


def test_another_teacher_under_the_same_name_is_noticed_and_each_is_recorded(options, tmp_path):
    teacher = tmp_path / "teacher.pth"

    def make(seed: int) -> None:
        torch.manual_seed(seed)
        torch.save({"params": build_network(options["network_t"]).state_dict()}, teacher)

    make(1)
    options = changed(options, path={"pretrain_network_t": str(teacher)})
    finish(options, tmp_path)
    record = json.loads((tmp_path / "experiments/tiny/record.json").read_text())
    (weights,) = record["starts"][0]["weights"].items()
    digest = hashlib.sha256(teacher.read_bytes()).hexdigest()
    assert weights == ("path.pretrain_network_t", {"file": str(teacher), "sha256": digest})
    saved = torch.load(tmp_path / "experiments/tiny/models/net_g_4.pth", weights_only=True)
    assert saved["training"]["weights"] == {"path.pretrain_network_t": digest}
    make(2)
    code, errors = told(changed(options, train__total_iter=5), tmp_path, auto_resume=True)
    assert code == 2
    assert f"  content of path.pretrain_network_t: SHA-256 {digest[:12]}... -> " in errors
    code, _ = told(changed(options, train__total_iter=5), tmp_path, auto_resume=True, allow_config_change=True)
    assert code == 0
    record = json.loads((tmp_path / "experiments/tiny/record.json").read_text())
    assert [start["iteration"] for start in record["starts"]] == [0, 4]
    assert len({start["weights"]["path.pretrain_network_t"]["sha256"] for start in record["starts"]}) == 2


@pytest.mark.parametrize("accumulate", [1, 2])
def test_1_2_and_4_ranks_take_the_same_samples_in_each_iteration(accumulate):
    def iterations(ranks: int, start: int, end: int) -> list[list]:
        """For each iteration the keys of all its samples, in their global order."""
        samplers = [
            iter(
                KeySampler(
                    num_samples=11,
                    batch_size=8 // ranks // accumulate,
                    seed=5,
                    rank=rank,
                    world_size=ranks,
                    start_iteration=start,
                    total_iterations=end,
                    accumulate=accumulate,
                )
            )
            for rank in range(ranks)
        ]
        return [
            [key for _ in range(accumulate) for sampler in samplers for key in next(sampler)] for _ in range(start, end)
        ]

    whole = iterations(1, 0, 12)
    assert len({key.seed for keys in whole for key in keys}) == 12 * 8
    mixed = iterations(2, 0, 3) + iterations(4, 3, 7) + iterations(1, 7, 9) + iterations(2, 9, 12)
    assert mixed == whole


def test_two_ranks_go_on_with_what_one_began(begun, tmp_path):
    half = changed(begun, datasets__train__batch_size_per_gpu=1)
    run_ranks(told_by_ranks, 2, half, str(tmp_path), {"auto_resume": True})
    first = (tmp_path / "told.0").read_text()
    assert first.startswith("0\n"), first
    assert "changed since 4.state was saved: images to an iteration: 2 (1 rank x 2) -> 2 (2 ranks x 1)" in first
    assert (tmp_path / "experiments/tiny/training_states/5.json").exists()


class UndeclaredLoss(nn.Module):
    """A loss as users write it, which says nothing of batches."""

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output - target).std()


class DerivedLoss(L1Loss):
    """A loss that inherits a declaration and compares images all the same."""

    def forward(self, pred, target, weight=None, **kwargs):
        return (pred - target).std()


class UndeclaredMethod(LossTerm):
    """A method as the guide shows it, which says nothing of batches."""

    weights = {"l_own": 1.0}

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        return {"l_own": (context.sr - context.teacher_output).std()}


UNFIT_FOR_OTHER_RANKS = {
    "a loss without a declaration": {"train__pixel_opt__type": "UndeclaredLoss"},
    "a loss that inherits its declaration": {"train__pixel_opt__type": "DerivedLoss"},
    "a sum over the batch": {"train__pixel_opt__reduction": "sum"},
    "the criterion of a method": {
        "train__distill": {"own": {"type": "ResponseDistillation", "criterion": {"type": "UndeclaredLoss"}}}
    },
    "a method without a declaration": {"train__distill": {"own": {"type": "UndeclaredMethod"}}},
    "negatives of one rank": {"train__contrastive_opt__gather_negatives": False},
    "CSD": {"train__distill": {"own": {"type": "CSD", "vgg_weights": "random"}}},
}
FIT_FOR_OTHER_RANKS = {
    "MCAD-KD": {},
    "FAKD": {"train__distill": {"own": {"type": "FAKD"}}},
    "a criterion that is a mean": {
        "train__distill": {"own": {"type": "ResponseDistillation", "criterion": {"type": "MSELoss"}}}
    },
}


@pytest.mark.parametrize("changes", [*UNFIT_FOR_OTHER_RANKS.values(), *FIT_FOR_OTHER_RANKS.values()])
def test_another_number_of_ranks_is_refused_unless_every_loss_declares_that_it_does_not_mind(mcadkd, tmp_path, changes):
    with registered(LOSS_REGISTRY, UndeclaredLoss, DerivedLoss), registered(METHOD_REGISTRY, UndeclaredMethod):
        options = load_options(changed(mcadkd, **changes), training=True, root=tmp_path)
        before = load_options(
            changed(mcadkd, **changes, datasets__train__batch_size_per_gpu=1), training=True, root=tmp_path
        )
        resume = Checkpoint(4, {}, {"options": resolved_yaml(before), "world_size": 2}, Path("4.state"))
        rank_info = RankInfo(torch.device("cpu"))
        line = "images to an iteration: 2 (2 ranks x 1) -> 2 (1 rank x 2)"
        if changes in UNFIT_FOR_OTHER_RANKS.values():
            with pytest.raises(OptionsError, match=re.escape(line)):
                check_options(resume, options, rank_info, False)
        else:
            assert check_options(resume, options, rank_info, False) == [f"changed since 4.state was saved: {line}"]


def test_weights_that_losses_find_by_themselves_are_compared_too(mcadkd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("vgg16-mine.pth", "vqgan_imagenet_f16_1024.ckpt"):
        write_weights(tmp_path / "experiments/pretrained_models" / name, name)
    given = changed(
        mcadkd,
        train__perceptual_opt={"type": "PerceptualLoss", "vgg_type": "vgg16", "layer_weights": {"conv1_1": 1.0}},
        train__distill={"dckd": {"type": "DCKD"}},
    )
    options = load_options(given, training=True, root=tmp_path)
    before = input_digests(options)
    assert list(before) == ["train.distill.dckd.vqgan_weights", "train.perceptual_opt.vgg_weights"]
    write_weights(tmp_path / "experiments/pretrained_models/vgg16-mine.pth", "others")
    state = {"options": resolved_yaml(options), "world_size": 1}
    rank_info = RankInfo(torch.device("cpu"))
    with pytest.raises(OptionsError, match=r"\n  content of train\.perceptual_opt\.vgg_weights: SHA-256 \w+\.\.\. -> "):
        check_options(Checkpoint(4, {}, {**state, "files": before}, Path("4.state")), options, rank_info, False)
    older = Checkpoint(4, {}, {**state, "files": {}}, Path("4.state"))
    assert check_options(older, options, rank_info, False) == []


def write_weights(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_a_checkpoint_of_an_older_version_has_the_defaults_of_options_that_it_did_not_know(options, begun, tmp_path):
    folder = CheckpointFolder(tmp_path / "experiments/tiny")
    checkpoint = folder.load(tmp_path / "experiments/tiny/training_states/4.state")
    lines = [line for line in checkpoint.state["options"].splitlines() if "check_images" not in line]
    state = {
        key: value for key, value in checkpoint.state.items() if key not in ("images", "files", "format", "iteration")
    }
    folder.save(4, checkpoint.networks, {**state, "options": "\n".join(lines)})
    code, errors = told(begun, tmp_path, auto_resume=True)
    assert code == 0, errors
    assert "check_images" not in errors


OLDER = """
  resp_kd_opt: {type: PerceptualLoss, layer_weights: {conv5_4: 1.0}, vgg_weights: vgg.pth}
  contrastive_opt: {type: patch, patch_size: 12, num_patches: 4, embed_dim: 16}
  distill: {more: {type: LabelConsistency}}
"""


@pytest.mark.parametrize("unknown", ["", "a_key_of_old: 1\n"])
def test_terms_that_an_older_version_kept_under_other_names_are_the_same(options, tmp_path, monkeypatch, unknown):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vgg.pth").write_bytes(b"weights")
    without = changed(options, train__resp_kd_opt=None, train__contrastive_opt=None)
    written = {**without, "train": {**without["train"], **yaml.safe_load(OLDER)}}
    now = load_options(written, training=True, paths=False)
    assert list(now.train.distill) == ["response", "contrastive", "more"]
    assert now.train.distill["contrastive"]["mode"] == "patch"
    kept = resolved_yaml(now)
    start = kept.index("  distill:")
    end = start + re.search(r"\n  (?=\w)", kept[start:]).start()
    older = kept[:start] + OLDER.strip("\n") + kept[end:]
    files = {"train.resp_kd_opt.vgg_weights": input_digests(now)["train.distill.response.criterion.vgg_weights"]}
    saved = Checkpoint(4, {}, {"options": unknown + older, "files": files}, Path("4.state"))
    remarks = check_options(saved, now, RankInfo(torch.device("cpu")), bool(unknown))
    assert remarks == (["changed since 4.state was saved: a_key_of_old: 1 -> not set"] if unknown else [])
    assert unknown or todays_text(older) == kept


def test_a_second_process_does_not_train_in_the_same_folder(mcadkd, tmp_path):
    options = changed(mcadkd, train__total_iter=100_000, val__val_freq=100_000, logger__save_checkpoint_freq=2)
    process = start(train, options, str(tmp_path))
    state = tmp_path / "experiments/tiny/training_states/2.json"
    while process.is_alive() and not state.exists():
        pass
    for arguments in ({}, {"auto_resume": True}):
        code, errors = told(options, tmp_path, **arguments)
        assert code == 4
        folder = tmp_path / "experiments/tiny"
        assert f"error: {folder} is in use: process {process.pid} on " in errors
    process.kill()
    process.join()
    assert not list(Path(tmp_path).glob("experiments/*_archived_*"))


TEACHER = {
    "other weights of the file": ({"path__param_key_t": "params_ema"}, "path.param_key_t: params -> params_ema"),
    "no file": (
        {"path__pretrain_network_t": None, "path__allow_random_teacher": True},
        "content of path.pretrain_network_t",
    ),
    "networks not restored": ({"path__ignore_resume_networks": ["network_g"]}, "path.ignore_resume_networks"),
}


@pytest.mark.parametrize("changes, line", TEACHER.values(), ids=TEACHER)
def test_another_teacher_is_refused_however_it_comes_about(with_teacher, tmp_path, changes, line):
    finish(with_teacher, tmp_path)
    code, errors = told(changed(with_teacher, train__total_iter=5, **changes), tmp_path, auto_resume=True)
    assert code == 2 and f"  {line}" in errors


@pytest.fixture
def with_teacher(options, tmp_path):
    state = build_network(options["network_t"]).state_dict()
    torch.save({"params": state, "params_ema": state}, tmp_path / "teacher.pth")
    return changed(options, path={"pretrain_network_t": str(tmp_path / "teacher.pth")})


def test_a_teacher_that_is_recognised_from_its_file_and_one_that_moved_are_the_same(with_teacher, tmp_path):
    options = changed(with_teacher, network_t={"type": "auto"})
    finish(options, tmp_path)
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "teacher.pth", tmp_path / "moved")
    moved = changed(options, train__total_iter=5, path__pretrain_network_t=str(tmp_path / "moved/teacher.pth"))
    code, errors = told(moved, tmp_path, auto_resume=True)
    assert code == 0, errors


def test_other_lr_images_of_the_same_names_are_noticed(begun, tmp_path):
    folder = tmp_path / "data/LR_X2"
    for file in folder.iterdir():
        cv2.imwrite(str(file), 255 - cv2.imread(str(file)))
    code, errors = told(begun, tmp_path, auto_resume=True)
    assert code == 2 and errors.count("  training images: pixels of image ") == 3


def test_a_contrast_within_the_batch_does_not_go_on_with_the_batch_cut_in_two(begun, tmp_path):
    halves = changed(begun, datasets__train__batch_size_per_gpu=1, train__accumulate=2)
    code, errors = told(halves, tmp_path, auto_resume=True)
    assert code == 2
    assert "  images to an iteration: 2 (1 rank x 2) -> 2 (1 rank x 2 batches x 1)" in errors.splitlines()


@pytest.mark.parametrize("text", ["&a [" + "*a, " * 9 + "]", "a: &a [1]\nb: " + "[*a, " * 90, "just text"])
def test_a_strangers_checkpoint_may_hold_hostile_options(begun, tmp_path, text):
    folder = CheckpointFolder(tmp_path / "experiments/tiny")
    checkpoint = folder.load(tmp_path / "experiments/tiny/training_states/4.state")
    state = {key: value for key, value in checkpoint.state.items() if key not in ("format", "iteration")}
    folder.save(4, checkpoint.networks, {**state, "options": text})
    code, errors = told(begun, tmp_path, auto_resume=True)
    assert code == 4
    assert "4.state cannot be resumed: " in errors.splitlines()[0] and "Traceback" not in errors
