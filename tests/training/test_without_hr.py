"""Training on LR images alone: the teacher's output is the only target, and what needs HR images is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from support.caching import from_cache, make, with_teacher
from support.registering import registered
from support.training import changed, checkpoint_of, differences, without_teacher
from torch.utils.data import Dataset

from basicsr.config.load import load_options
from basicsr.config.yaml_files import dump_yaml
from basicsr.data.loading import TrainLoader, build_dataset
from basicsr.distill.base import LossTerm, StepContext
from basicsr.engine.inputs import check_cache_content
from basicsr.engine.process.distributed import RankInfo
from basicsr.engine.training_run import TrainingRun
from basicsr.train import train_pipeline
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.registry import DATASET_REGISTRY, METHOD_REGISTRY

NO_HR = {"datasets__train__dataroot_gt": None}
NEEDING = {"train__pixel_opt": None, "train__adversarial_opt": None, "network_d": None, "train__optim_d": None}
WEIGHTLESS = {"train__pixel_opt__loss_weight": 0.0, "train__adversarial_opt": None, "network_d": None}


@pytest.fixture
def lr_only(mcadkd) -> dict[str, Any]:
    """MCAD-KD's losses that do without HR images."""
    return changed(mcadkd, **NO_HR, **NEEDING)


def loader_of(options: dict[str, Any], root: Path) -> TrainLoader:
    return run_of(options, root).loader


def run_of(options: dict[str, Any], root: Path) -> TrainingRun:
    loaded = load_options(options, training=True, root=root)
    return TrainingRun(loaded, RankInfo(device=torch.device("cpu"), rank=0, world_size=1, remark=""), None)


def mistakes(options: dict[str, Any], **arguments: Any) -> list[str]:
    with pytest.raises(OptionsError) as caught:
        load_options(options, training=True, paths=False, **arguments)
    return str(caught.value).splitlines()[1:]


def test_gradients_are_those_of_a_run_with_hr_images_whose_losses_weigh_nothing(mcadkd, lr_only, tmp_path):
    every = {
        "history": {"type": "DCKD", "vqgan_weights": "random"},
        "csd": {"type": "CSD", "vgg_weights": "random", "num_negatives": 1},
        "zooms": {"type": "DUKD", "zoom_in": False},
        "mixture": {"type": "MiPKD", "ground_truth_share": 0.0, "positions": 2},
        "hint": {"type": "FitNet"},
        "consistency": {"type": "LabelConsistency"},
    }
    found = []
    for options in (lr_only, changed(mcadkd, **WEIGHTLESS)):
        run = run_of(changed(options, train__distill=every), tmp_path)
        ((batch,), *_) = run.loader
        output = run.model(batch.to("cpu"), 1)
        output.total.backward()
        gradients = {name: parameter.grad for name, parameter in run.model.named_parameters()}
        found.append({"parts": output.parts, "gradients": gradients, "lq": batch.lq, "seeds": batch.seeds})
        assert (batch.gt is None) == ("dataroot_gt" not in options["datasets"]["train"])
    assert set(found[1]["parts"]) - set(found[0]["parts"]) == {"l_pix"}
    found[1]["parts"].pop("l_pix")
    assert len(found[0]["gradients"]) > 40 and differences(*found) == []


def test_a_run_learns_what_a_run_with_hr_images_learns_from_the_teacher(mcadkd, lr_only, tmp_path):
    progressive = {
        "datasets__train__gt_sizes": [24, 32],
        "datasets__train__mini_batch_sizes": [2, 3],
        "datasets__train__iters": [3, 100],
        "train__accumulate": 2,
        "channels_last": True,
        "amp": "bf16",
        "logger__use_tb_logger": True,
    }
    ends = []
    for name, options in (("alone", lr_only), ("pairs", changed(mcadkd, **WEIGHTLESS))):
        result = train_pipeline(changed(options, **progressive), root=tmp_path / name)
        end = checkpoint_of(result.folder, 8)
        ends.append({"g": {key: end["g"][key] for key in ("params", "params_ema")}, "best": end["state"]["best"]})
    assert differences(*ends) == []
    log = next((tmp_path / "alone/experiments/tiny").glob("*.log")).read_text()
    assert "train: no HR images; learned from the teacher alone, by response, contrastive" in log


def test_every_loss_that_needs_hr_images_is_refused_by_name(mcadkd, tmp_path):
    methods = {
        "zooms": {"type": "DUKD"},
        "mixture": {"type": "MiPKD"},
        "shared": {"type": "SharedCSD", "vgg_weights": "random"},
    }
    file = tmp_path / "mine.yml"

    percep = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "vgg_weights": "random"}
    options = changed(mcadkd, **NO_HR, train__distill=methods, train__perceptual_opt=percep)
    options["train"]["gan_opt"] = options["train"].pop("adversarial_opt")
    file.write_text(dump_yaml(options))
    lines = mistakes(file)
    for key, use in {
        "pixel_opt": "compares with HR images",
        "perceptual_opt": "compares with HR images",
        "gan_opt": "shows HR images to the discriminator",
        "distill.zooms": "DUKD uses tiles of HR images, unless zoom_in is false",
        "distill.mixture": "MiPKD uses HR images as targets of l_block, unless ground_truth_share is 0",
        "distill.shared": "SharedCSD uses HR images, from which the teacher learns (l_wide)",
    }.items():
        (line,) = [line for line in lines if f": train.{key}: " in line]
        number = int(line.split(":")[1])
        assert key.split(".")[-1] in file.read_text().splitlines()[number - 1]
        assert f"{use}, and datasets.train has none (dataroot_gt); remove it, or give dataroot_gt" in line
    assert len(lines) == 6
    assert mistakes(changed(options, train__distill=None), overrides=["train:distill=~"])  # the others stay


class Undeclared(LossTerm):
    """A method that does not say what it needs."""

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        return {"l_x": context.sr.mean()}


class ReadsInSecret(Undeclared):
    gt_needs = ""
    weights = {"l_x": 1.0}

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        return {"l_x": (context.sr - context.hr).mean()}


def test_a_method_that_declares_nothing_is_refused_and_one_that_declares_too_little_is_told(lr_only, tmp_path):
    with registered(METHOD_REGISTRY, Undeclared, ReadsInSecret):
        (line,) = mistakes(changed(lr_only, train__distill={"mine": {"type": "Undeclared"}}))
        assert "train.distill.mine: Undeclared uses HR images, as its class does not say otherwise (gt_needs)" in line
        options = changed(lr_only, train__distill={"mine": {"type": "ReadsInSecret"}})
        with pytest.raises(OptionsError, match=r"a loss reads HR images, and there are none: .* declare .*gt_needs"):
            train_pipeline(options, root=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "datasets.train: has no HR images (dataroot_gt), and without a teacher nothing else is a target"),
        ({"datasets__train__gt_size": 33}, "datasets.train.gt_size: must be a multiple of scale 2, got 33; take 32"),
        ({"datasets__train__dataroot_lq": None}, "datasets.train.dataroot_gt: is required, or dataroot_lq"),
    ],
)
def test_options_that_leave_nothing_to_learn_from_are_refused(mcadkd, lr_only, changes, message):
    options = changed(lr_only if changes else without_teacher(mcadkd, **NO_HR), **changes)
    (line,) = mistakes(options)
    assert message in line


def test_a_base_with_pairs_can_lose_its_hr_images(mcadkd, lr_only, tmp_path):

    (tmp_path / "base.yml").write_text(dump_yaml(changed(mcadkd, **NEEDING)))
    for change in ("dataroot_gt: ~", f"dataroot_gt: ~\n    dataroot_lq: {lr_only['datasets']['train']['dataroot_lq']}"):
        (tmp_path / "mine.yml").write_text(f"_base_: base.yml\ndatasets:\n  train:\n    {change}\n")
        assert load_options(tmp_path / "mine.yml", training=True).datasets["train"].arguments["dataroot_gt"] is None


def test_lr_images_smaller_than_the_patch_are_refused_or_extended(lr_only, tmp_path):
    lq = Path(lr_only["datasets"]["train"]["dataroot_lq"])
    small = lq / "img002x2.png"
    cv2.imwrite(str(small), cv2.imread(str(small))[:10])
    with pytest.raises(DataError, match=r"img002x2\.png is 10x24 \(H x W\), smaller than patches of 32 \(LR 16\)"):
        train_pipeline(lr_only, root=tmp_path)
    assert not list((tmp_path / "experiments").rglob("*.pth"))
    with pytest.raises(DataError, match=r"smaller than patches of 64 .*\n +and 6 more images like it"):
        train_pipeline(changed(lr_only, datasets__train__gt_size=64), root=tmp_path)
    options = changed(lr_only, datasets__train__extend_small=True, train__total_iter=4)
    assert train_pipeline(options, root=tmp_path).iteration == 4
    skipping = changed(lr_only, datasets__train__skip_bad_images=1, name="skipping")
    assert train_pipeline(skipping, root=tmp_path).iteration == 8


def test_a_cache_of_lr_images_alone_has_their_names(mcadkd, lr_only, tmp_path):
    options = with_teacher(lr_only, tmp_path)
    made = make(options)
    lq = Path(options["datasets"]["train"]["dataroot_lq"])
    assert made.folder.parent == lq.parent and made.folder.name.startswith("LR_X2_EDSR_x2_")
    assert sorted(path.name for path in made.folder.glob("*.ppm")) == [f"img00{i}x2.ppm" for i in range(7)]
    result = train_pipeline(changed(from_cache(options, made.folder), train__total_iter=4), root=tmp_path)
    assert result.iteration == 4
    of_pairs = changed(mcadkd, path=options["path"])
    pairs, alone = (
        loader_of(from_cache(given, folder), tmp_path).dataset
        for given, folder in ((of_pairs, make(of_pairs).folder), (options, made.folder))
    )
    for index in range(len(pairs)):
        for name in ("lq", "sr_teacher"):
            assert torch.equal(pairs[index][name], alone[index][name])


def test_a_cache_by_the_names_of_hr_images_is_refused_in_one_line(mcadkd, lr_only, tmp_path):
    pairs = with_teacher(changed(mcadkd, **NEEDING), tmp_path)
    folder = make(pairs).folder
    options = from_cache(with_teacher(lr_only, tmp_path), folder)
    with pytest.raises(DataError, match="is of other images: image 0 is img000 in it and img000x2 in the dataset"):
        check_cache_content(str(folder), loader_of(options, tmp_path).dataset)


def test_validation_without_hr_images_saves_images_or_is_refused(lr_only, tmp_path):
    options = changed(lr_only, datasets__val__dataroot_gt=None, train__total_iter=2, val__val_freq=2)
    (line,) = mistakes(options)
    assert "datasets.val.dataroot_gt: is required, as val.metrics psnr, ssim compare with HR images; or set" in line
    options = changed(options, val__save_img=True, logger__use_tb_logger=True)
    folder = train_pipeline(options, root=tmp_path).folder
    assert len(list((folder / "visualization/val").rglob("*.png"))) == 3
    assert "datasets.val (val) has no HR images: no figures of psnr, ssim" in next(folder.glob("*.log")).read_text()
    best = {"dataset": "val", "metric": "psnr"}
    (line,) = mistakes(changed(options, val__best=best))
    assert "val.best.dataset: has none (datasets.val.dataroot_gt), and val.metrics psnr, ssim compare" in line


def test_samples_are_those_of_pairs_without_hr(mcadkd, lr_only):
    blocks = [{**options["datasets"]["train"], "phase": "train", "scale": 2} for options in (mcadkd, lr_only)]
    pairs, alone = (build_dataset({k: v for k, v in block.items() if "num_w" not in k}) for block in blocks)
    for index in range(len(pairs)):
        sample = pairs[index]
        del sample["gt"], sample["gt_path"]
        assert differences(sample, alone[index]) == []


class NoHRAtTheEnd(Dataset):
    """A user's dataset whose last sample has no HR image, which its class does not say."""

    def __init__(self, opt: dict[str, Any]) -> None:
        self._lq = torch.rand(3, 8, 8)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"lq": self._lq, "lq_path": "a", **({"gt": torch.rand(3, 16, 16)} if index < 3 else {})}


def test_a_dataset_that_does_not_say_that_hr_images_are_missing_is_told(mcadkd, tmp_path):
    options = changed(mcadkd, datasets__train={"type": "NoHRAtTheEnd", "name": "own"}, train__contrastive_opt=None)
    with registered(DATASET_REGISTRY, NoHRAtTheEnd), pytest.raises(DataError) as caught:
        train_pipeline(options, root=tmp_path)
    assert "sample 3 of NoHRAtTheEnd has no HR image ('gt'), and its class says that samples come with" in str(
        caught.value
    )
