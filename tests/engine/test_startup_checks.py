"""Networks, losses and images that do not fit each other are refused before a run begins, in one line with a remedy."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.registering import registered
from support.tiny_run import EDSR
from support.training import changed, without_teacher
from torch import nn
from torch.nn import functional as F

from basicsr.config.load import load_options
from basicsr.engine.process.distributed import RankInfo
from basicsr.engine.startup_checks import check_fit
from basicsr.engine.training_run import TrainingRun
from basicsr.inference.trials import Trial
from basicsr.utils.errors import DataError, NonFiniteError, OptionsError
from basicsr.utils.registry import ARCH_REGISTRY

CPU = torch.device("cpu")
GRAY = {"num_in_ch": 1, "num_out_ch": 1, "rgb_mean": [0.5]}
GRAY_EDSR = {**EDSR, **GRAY}
SWINIR = {"type": "SwinIR", "img_size": 16, "embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 8}
VGG = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "vgg_weights": "random"}
IN_GRAY = {"datasets__train__color": "gray", "datasets__val__color": "gray"}
computed: list[int] = []  # larger sides of images that a network of the user's own was run on, with values


class UsersOwn(nn.Module):
    """A network as a user may write one, with the faults that `how` names. It changes when it is run."""

    def __init__(self, *, how: str = "") -> None:
        super().__init__()
        self.how, self.calls = how, 0
        self.conv, self.norm = nn.Conv2d(3, 3, 3, 1, 1), nn.BatchNorm2d(3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> Any:
        self.calls += 1
        self.seen += 1
        if x.device.type != "meta":
            computed.append(max(x.shape[-2:]))
        if self.how == "raises":
            raise KeyError("no such\nlayer")
        if self.how == "multiples of 8" and x.shape[-1] % 8:
            raise RuntimeError("sizes of tensors must match")
        if self.how == "16 at least" and x.shape[-1] < 16:
            raise RuntimeError("padding is too large")
        if self.how == "reads values" and not bool(torch.isfinite(x).all()):
            return x
        y = F.interpolate(self.norm(self.conv(x)), scale_factor=1 if self.how == "scale 1" else 2)
        y = y + 0 * torch.randn(1, device=x.device)
        return {"a list": [y], "not finite": y / 0, "six channels": torch.cat([y, y], 1)}.get(self.how, y)


@pytest.fixture(autouse=True, scope="module")
def _users_own() -> Iterator[None]:
    with registered(ARCH_REGISTRY, UsersOwn):
        yield


def built(options: dict[str, Any], root) -> TrainingRun:
    return TrainingRun(load_options(options, training=True, root=root), RankInfo(CPU), None)


def own(options: dict[str, Any], how: str = "", **changes: Any) -> dict[str, Any]:
    return without_teacher(options, **{"network_g": {"type": "UsersOwn", "how": how}, **changes})


@pytest.mark.parametrize(
    ("keeps_teacher", "changes", "message"),
    [
        (
            True,
            {"network_g": GRAY_EDSR},
            r"network_g \(EDSR\) takes 1 channel, datasets.train gives 3: set datasets.train.color to gray .* or y"
            r" \(luma\), or set network_g.num_in_ch \(and num_out_ch, the length of rgb_mean\) to 3$",
        ),
        (
            True,
            {"datasets__train__color": "y"},
            r"network_g \(EDSR\) takes 3 channels, datasets.train gives 1: remove datasets.train.color, or set"
            r" network_g.num_in_ch \(and num_out_ch\) to 1$",
        ),
        (False, {"datasets__val__color": "gray"}, r"takes 3 channels, datasets.val gives 1: remove datasets.val.color"),
        (
            True,
            {**IN_GRAY, "network_g": GRAY_EDSR},
            r"^network_t \(EDSR\) takes 3 channels, datasets.train gives 1: take a teacher for 1 channel$",
        ),
        (
            True,
            {**IN_GRAY, "network_g": GRAY_EDSR, "network_t": GRAY_EDSR},
            r"network_d \(UNetDiscriminatorSN\) takes 3 channels, network_g gives 1: set network_d.num_in_ch to 1$",
        ),
        (
            False,
            {"network_g": {**SWINIR, "upscale": 2}},
            r"network_g \(SwinIR\) makes 16x16 pixels of 16x16, scale 2 needs 32x32: give network_g an upsampler .*"
            r" or set scale to 1$",
        ),
        (
            True,
            {"network_d": {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 4}},
            r"^network_d: VGGStyleDiscriminator takes 128x128 images, got 32x32: change gt_size or input_size$",
        ),
        (
            True,
            {
                "datasets__train__gt_sizes": [32, 20],
                "datasets__train__mini_batch_sizes": [2, 1],
                "datasets__train__iters": [4, 4],
            },
            r"^network_d: UNetDiscriminatorSN takes heights and widths that are multiples of 8, got 20x20: change",
        ),
        (
            False,
            {"datasets__train__gt_size": 8, "train__perceptual_opt": VGG},
            r"^PerceptualLoss: the VGG needs gray or colour images of 16x16 at least, .* 3 channels and 8x8 pixels",
        ),
        (
            True,
            {
                "datasets__train__gt_size": 8,
                "train__contrastive_opt": None,
                "train__distill": {"csd": {"type": "CSD", "vgg_weights": "random"}},
            },
            r"^CSD: the VGG needs gray or colour images of 16x16 at least, .* 8x8 pixels; raise gt_size",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_remedy(mcadkd, tmp_path, keeps_teacher, changes, message):
    options = mcadkd if keeps_teacher else without_teacher(mcadkd)
    with pytest.raises(OptionsError, match=message) as error:
        check_fit(built(changed(options, **changes), tmp_path))
    assert "\n" not in str(error.value) and not (tmp_path / "experiments").exists()


def test_one_channel_is_not_spread_to_three_in_silence(mcadkd, tmp_path):
    """EDSR takes off its mean colour, which makes three channels of one: without HR images nothing else shows it."""
    images = {"type": "SingleImageDataset", "name": "alone", "dataroot_lq": mcadkd["datasets"]["val"]["dataroot_lq"]}
    options = without_teacher(mcadkd, datasets__val={**images, "color": "gray"}, val__save_img=True)
    with pytest.raises(OptionsError, match=r"takes 3 channels, datasets.val gives 1: remove datasets.val.color"):
        check_fit(built(options, tmp_path))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", r"on 3 channels of 16x16 pixels, as datasets.train has them: KeyError: 'no such\\nlayer'; mend the"),
        ("a list", r"TypeError: forward returned a list; it must return one tensor \(B, C, H, W\)"),
        ("multiples of 8", r"fails on 3 channels of 20x20 pixels, as datasets.val has them: RuntimeError: sizes of"),
        (
            "scale 1",
            r"makes 16x16 pixels of 16x16, scale 2 needs 32x32: take a network for scale 2, or set scale to 1$",
        ),
        ("six channels", r"gives 6 channels, the HR images of datasets.train have 3: set network_g.num_out_ch to 3$"),
    ],
)
def test_a_network_of_the_users_own_is_refused_in_a_line(mcadkd, tmp_path, how, message):
    with pytest.raises(OptionsError, match=rf"^network_g \(UsersOwn\) .*{message}"):
        check_fit(built(own(mcadkd, how), tmp_path))


def test_outputs_that_are_not_finite_are_told(mcadkd, tmp_path):
    with pytest.raises(NonFiniteError, match=r"network_g \(UsersOwn\) puts out values that are not finite"):
        check_fit(built(own(mcadkd, "not finite"), tmp_path))


def test_images_whose_results_would_have_one_name_are_told_before_the_run(mcadkd, image_pairs, tmp_path):
    hr, _ = image_pairs(count=2, size=24, folder="named")
    first, second = sorted(hr.iterdir())
    second.rename(first.with_suffix(".jpg"))  # its content is what counts
    made = {"datasets__val__dataroot_gt": str(hr), "datasets__val__dataroot_lq": None}
    listed = {**made, "datasets__val__meta_info_file": str(tmp_path / "names.txt")}
    (tmp_path / "names.txt").write_text(f"{first.name}\n{first.name}\n")
    called_alike = rf"{first.stem}\.\w+ would both be called {first.stem} in the results"
    for roots, message in ((made, called_alike), (listed, rf"{first.name} is listed twice; name each image")):
        with pytest.raises(DataError, match=message):
            check_fit(built(changed(without_teacher(mcadkd), **roots), tmp_path))


def test_only_sizes_that_a_set_has_are_asked_of_a_network(mcadkd, image_pairs, tmp_path):
    """The first image, of 24x24, is a multiple of 8; the second may be, or not."""
    gt, lq = image_pairs(count=1, size=24, folder="sizes")
    roots = {"datasets__val__dataroot_gt": str(gt), "datasets__val__dataroot_lq": str(lq)}
    check_fit(built(own(mcadkd, "multiples of 8", **roots), tmp_path))
    for source, kind in zip(image_pairs(count=1, size=20, folder="other"), (gt, lq), strict=True):
        (file,) = source.iterdir()
        file.rename(kind / file.name.replace("img000", "img001"))
    with pytest.raises(OptionsError, match=r"20x20 pixels, as datasets.val has them: .*\(val.tile\)$"):
        check_fit(built(own(mcadkd, "multiples of 8", **roots), tmp_path))
    check_fit(built(own(mcadkd, "multiples of 8", val__tile=16, **roots), tmp_path))


@pytest.mark.parametrize("how", ["", "16 at least", "reads values"])
def test_nothing_of_a_run_is_changed(mcadkd, tmp_path, how):
    run = built(changed(mcadkd, network_g={"type": "UsersOwn", "how": how}), tmp_path)
    assert run.adversary is not None and run.teacher is not None
    modules = [run.model, run.network, run.teacher.network, run.adversary.discriminator]
    before = copy.deepcopy([module.state_dict() for module in modules])
    modes = [[part.training for part in module.modules()] for module in modules]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert check_fit(run) == []
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert modes == [[part.training for part in module.modules()] for module in modules]
    for old, module in zip(before, modules, strict=True):
        new = module.state_dict()
        assert list(old) == list(new) and all(torch.equal(old[key], new[key]) for key in old)
    assert run.network.calls == 0


def test_large_images_cost_nothing_where_a_network_needs_no_values():
    """Shapes are found without computing; only a corner is computed, for its values."""
    computed.clear()
    trial = Trial("network_g", UsersOwn(), CPU)
    assert trial.outcome((3, 2000, 3001)).made == (3, 4000, 6002) and computed == []
    assert trial.values(torch.rand(3, 2000, 3001)).made is not None
    assert len(computed) == 1 and computed[0] < 32


def test_where_values_are_read_a_shorter_image_shows_the_same_multiples():
    trial = Trial("network_g", UsersOwn(how="reads values"), CPU)
    assert trial.outcome((3, 1000, 96)) == trial.outcome((3, 64 + 1000 % 64, 96))


@pytest.mark.parametrize("color", ["gray", "y"])
def test_the_remedies_for_gray_networks_work(mcadkd, tmp_path, color):
    options = changed(mcadkd, network_g=GRAY_EDSR, network_t=GRAY_EDSR, network_d__num_in_ch=1,
                      datasets__train__color=color, datasets__val__color=color)  # fmt: skip
    (remark,) = check_fit(built(options, tmp_path))
    assert remark == "datasets.val (val) has one channel: test_y_channel of psnr, ssim has no effect"
