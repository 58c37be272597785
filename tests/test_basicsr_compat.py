"""Code written for BasicSR: datasets made of one dict and derived from, errors that it catches, where things lie."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support.registering import registered
from support.training import without_teacher

from basicsr.archs.discriminator_arch import VGGStyleDiscriminator
from basicsr.config.load import load_options
from basicsr.data import build_dataset
from basicsr.data.base import SampleKey, load_sample
from basicsr.data.data_util import paired_paths_from_folder
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.single_image_dataset import SingleImageDataset
from basicsr.engine.process.distributed import RankInfo
from basicsr.engine.training_run import TrainingRun
from basicsr.losses.basic_loss import L1Loss
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.utils import FileClient, imfrombytes, img2tensor
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import DATASET_REGISTRY


@pytest.fixture
def opt(image_pairs) -> dict[str, Any]:
    """As BasicSR's files and tests have it, with keys that no dataset reads."""
    gt, lq = image_pairs(count=3)
    return {
        "name": "any",
        "type": "PairedImageDataset",
        "dataroot_gt": str(gt),
        "dataroot_lq": str(lq),
        "filename_tmpl": "{}x2",
        "io_backend": {"type": "disk"},
        "scale": 2,
        "gt_size": 16,
        "use_hflip": True,
        "use_rot": True,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "phase": "train",
        "strength": 0.25,
    }


def test_a_dataset_is_made_of_one_dict_and_keeps_it(opt):
    given = copy.deepcopy(opt)
    dataset = PairedImageDataset(opt)
    assert opt == given and dataset.opt is opt
    assert (dataset.mean, dataset.std, dataset.filename_tmpl) == ([0.5] * 3, [0.5] * 3, "{}x2")
    assert (dataset.gt_folder, dataset.lq_folder, dataset.file_client) == (opt["dataroot_gt"], opt["dataroot_lq"], None)
    assert dataset.io_backend_opt == {"type": "disk"} and len(dataset) == 3
    assert dataset[0]["gt"].shape == (3, 16, 16) and dataset[0]["lq"].shape == (3, 8, 8)
    keywords = {key: value for key, value in opt.items() if key not in ("name", "type", "strength")}
    assert torch.equal(dataset[1]["gt"], PairedImageDataset(**keywords)[1]["gt"])
    single = SingleImageDataset({"dataroot_lq": opt["dataroot_lq"], "io_backend": {"type": "disk"}, "color": "y"})
    assert single[0]["lq"].shape == (1, 24, 24) and single.gt_folder is None


def test_what_the_dict_lacks_is_named(opt):
    del opt["scale"]
    with pytest.raises(OptionsError, match=r"^PairedImageDataset needs scale in its options$"):
        PairedImageDataset(opt)


class Brightened(PairedImageDataset):
    """Derived as from BasicSR's: takes `opt`, adds to what the base gives, draws from global generators."""

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__(opt)
        self.strength = self.opt["strength"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        sample["shift"] = self.strength * np.random.rand()
        sample["lq"] = sample["lq"] + sample["shift"]
        return sample


class ReadsForItself(PairedImageDataset):
    """Reads HR images by BasicSR's own means."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.file_client is None:
            self.file_client = FileClient(self.io_backend_opt.pop("type"), **self.io_backend_opt)
        path = self.paths[index]["gt_path"]
        image = imfrombytes(self.file_client.get(path, "gt"), float32=True)
        image = image[: self.opt["gt_size"], : self.opt["gt_size"]]
        return {"lq": img2tensor(image[::2, ::2]), "gt": img2tensor(image), "gt_path": path}


@pytest.fixture(autouse=True, scope="module")
def _derived_datasets() -> Iterator[None]:
    with registered(DATASET_REGISTRY, Brightened, ReadsForItself):
        yield


def test_a_derived_class_is_asked_and_repeats_by_its_key(opt):
    dataset = build_dataset({**opt, "type": "Brightened"})
    plain = PairedImageDataset(opt)
    key = SampleKey(1, seed=11)
    first, again, other = (load_sample(dataset, chosen, pixels=True) for chosen in (key, key, SampleKey(1, seed=12)))
    assert torch.equal(first["lq"], again["lq"]) and not torch.equal(first["gt"], other["gt"])
    expected = load_sample(plain, key)  # crop and flips are those of the key
    assert torch.equal(first["gt"], expected["gt"])
    assert torch.equal(first["lq"], expected["lq"] + first["shift"]) and 0 < first["shift"] < opt["strength"]


def test_derived_classes_train(mcadkd, tmp_path):
    for name, own in (("Brightened", {"datasets__train__strength": 0.5}), ("ReadsForItself", {})):
        options = without_teacher(mcadkd, datasets__train__type=name, **own)
        run = TrainingRun(load_options(options, training=True, root=tmp_path), RankInfo(torch.device("cpu")), None)
        batch = next(iter(run.loader))[0].to("cpu")
        assert batch.gt is not None and batch.gt.shape == (2, 3, 32, 32) and batch.lq.shape == (2, 3, 16, 16)
    image = cv2.imread(batch.gt_paths[0])[:32, :32, ::-1].astype(np.float32) / np.float32(255)
    assert torch.equal(batch.gt[0], torch.from_numpy(image.transpose(2, 0, 1).copy()))


def unequal_folders(tmp_path) -> list[str]:
    for folder, names in (("lq", ["a", "b"]), ("gt", ["a"])):
        (tmp_path / folder).mkdir()
        for name in names:
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), np.zeros((2, 2, 3), np.uint8))
    return [str(tmp_path / "lq"), str(tmp_path / "gt")]


@pytest.mark.parametrize(
    "call",
    [
        lambda _: calculate_psnr(np.ones((16, 16)), np.ones((10, 10)), crop_border=0),
        lambda _: calculate_ssim(np.ones((16, 16)), np.ones((10, 10)), crop_border=0),
        lambda _: VGGStyleDiscriminator(num_in_ch=3, num_feat=4, input_size=64),
        lambda _: VGGStyleDiscriminator(num_in_ch=3, num_feat=4)(torch.zeros(1, 3, 64, 64)),
        lambda _: L1Loss(reduction="sum")(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), weight=torch.zeros(2)),
        lambda tmp_path: paired_paths_from_folder(unequal_folders(tmp_path), ["lq", "gt"], "{}"),
    ],
)
def test_what_basicsr_asserts_may_be_caught_as_it_is_there(call, tmp_path):
    with pytest.raises(AssertionError) as error:
        call(tmp_path)
    assert isinstance(error.value, ValueError)


def test_losses_lie_where_basicsr_has_them():
    from basicsr.losses import PerceptualLoss, basic_loss, loss_util

    assert basic_loss.PerceptualLoss is PerceptualLoss
    assert loss_util.weighted_loss is basic_loss.weighted_loss
