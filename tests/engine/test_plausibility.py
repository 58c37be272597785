"""Networks whose input range, colours or mean are wrong are noticed on a few patches, and the cause is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks import nearest_edsr, save_checkpoint
from support.training import changed
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.luma import LumaNetwork
from basicsr.archs.mean_shift import DIV2K_MEAN
from basicsr.config.load import load_options
from basicsr.engine.plausibility import doubt, patches_of
from basicsr.engine.process.distributed import RankInfo
from basicsr.engine.startup_checks import check_fit
from basicsr.engine.training_run import TrainingRun
from basicsr.test import test_pipeline as run_test
from basicsr.utils.logger import WarningRemark


class Doubling(nn.Module):
    """Doubles pixels, and gives the HR images exactly, if input has its range, mean and order of colours only.

    It cuts what is not in [0, 1] and rounds to 8 bits, blue to quarters, as the images have it.
    """

    def __init__(
        self, wanted: float = 1.0, shift: tuple[float, ...] = (0, 0, 0), bgr: bool = False, scale: int = 2
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)  # it has a size and takes colours
        self.wanted, self.bgr, self.scale = wanted, bgr, scale
        self.shift = torch.tensor(shift, dtype=torch.float32).view(1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = torch.tensor([255.0, 255.0, 4.0]).view(1, 3, 1, 1)
        x = x.flip(1) if self.bgr else x
        images = ((x / self.wanted + self.shift).clamp(0, 1) * levels).round() / levels
        output = (F.interpolate(images, scale_factor=self.scale) - self.shift) * self.wanted
        return output.flip(1) if self.bgr else output


class Told(nn.Module):
    """As networks of ours that have the range and the mean colour as attributes."""

    mean: Tensor

    def __init__(self, img_range: float, mean: tuple[float, ...], inner: Doubling) -> None:
        super().__init__()
        self.inner, self.img_range = inner, img_range
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x - self.mean) * self.img_range) / self.img_range + self.mean


@pytest.fixture
def pairs() -> list[tuple[Tensor, Tensor]]:
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    lq = F.interpolate(coarse, (32, 32), mode="bilinear")[0]
    lq[2] = (lq[2] * 4).round() / 4
    return [(lq, lq.repeat_interleave(2, 1).repeat_interleave(2, 2))]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(nn.Conv2d(3, 3, 3).state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


@pytest.mark.parametrize(
    ("network", "best"),
    [
        (Doubling(255.0), "img_range 255"),
        (Doubling(bgr=True), "BGR"),
        (Doubling(shift=DIV2K_MEAN), "the mean colour of DIV2K"),
        (Doubling(255.0, DIV2K_MEAN, bgr=True), "img_range 255 and the mean colour of DIV2K and BGR"),
        (Told(1.0, (0, 0, 0), Doubling(255.0)), "img_range 255"),
        (Told(255.0, DIV2K_MEAN, Doubling()), "img_range 1 and no mean colour"),
        (Told(255.0, (0, 0, 0), Doubling(255.0, DIV2K_MEAN)), "the mean colour of DIV2K"),
    ],
    ids=lambda entry: entry if isinstance(entry, str) else type(entry).__name__,
)
def test_what_would_be_right_is_found_by_trying(network: Any, best: str, pairs: Any, file: Path) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    settings = getattr(network, "img_range", None), getattr(network, "mean", torch.zeros(0)).clone()
    remark = doubt("network_t", network, file, pairs, "Set5")
    assert isinstance(remark, WarningRemark)
    assert remark.startswith(f"network_t ({type(network).__name__}) has ") and "patches of Set5, bicubic" in remark
    assert f"with {best} it has" in remark and "order of colours (RGB or BGR)" in remark
    assert getattr(network, "img_range", None) == settings[0]
    assert torch.equal(getattr(network, "mean", torch.zeros(0)), settings[1])
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_sound_networks_and_unknown_cases_give_no_remark(pairs: Any, file: Path, tmp_path: Path) -> None:
    for network in (Doubling(), Told(255.0, DIV2K_MEAN, Doubling(255.0, DIV2K_MEAN))):
        assert doubt("network_t", network, file, pairs, "Set5") is None
    wrong = Doubling(255.0)
    assert doubt("network_t", wrong, file, [], "Set5") is None
    small = [(lq[:, :9, :9], gt[:, :18, :18]) for lq, gt in pairs]
    assert doubt("network_t", wrong, file, small, "Set5") is None
    own = save_checkpoint(tmp_path / "own.pth", nn.Conv2d(3, 3, 3), {"type": "EDSR"}, 2)  # the file tells it
    assert doubt("network_t", wrong, own, pairs, "Set5") is None


def test_where_nothing_helps_the_remark_says_so(pairs: Any, file: Path) -> None:
    class Dark(Doubling):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(F.interpolate(x, scale_factor=2)) + self.conv.bias.mean()

    remark = doubt("row", Dark(), file, pairs, "a, b")
    assert remark is not None and "no usual one is clearly better" in remark and "a, b" in remark


def test_restoration_is_compared_with_its_input_and_spared_on_clean_images(pairs: Any, file: Path) -> None:
    clean = pairs[0][0]
    noise = 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    noise[:, 0, 0] = 0
    wrong = Doubling(255.0, scale=1)
    remark = doubt("network_t", wrong, file, [(clean + noise, clean)], "noisy")
    assert remark is not None and "the images that it restores 20." in remark
    assert doubt("network_t", wrong, file, [(clean, clean)], "clean") is None
    assert doubt("network_t", nn.Conv2d(3, 3, 1), file, [(clean, clean + 1e-4)], "clean") is None


def test_gray_networks_are_looked_at_on_luma(pairs: Any, file: Path) -> None:
    class Gray(nn.Module):
        def __init__(self, img_range: float) -> None:
            super().__init__()
            self.conv, self.wanted = nn.Conv2d(1, 1, 1), img_range

        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x if x.amax() > self.wanted / 4 else x / 2, scale_factor=2)

    assert doubt("row", LumaNetwork(Gray(1.0), 2), file, pairs, "Set5") is None
    remark = doubt("row", LumaNetwork(Gray(255.0), 2), file, pairs, "Set5")
    assert remark is not None and "check its input range (img_range); with img_range 255 it has" in remark


def test_patches_are_the_most_detailed_and_fit_their_targets() -> None:
    lq, gt = torch.zeros(3, 40, 70), torch.zeros(3, 80, 140)
    gt[:, :64, 64:128] = torch.rand(3, 64, 64)
    patches = patches_of([(lq, gt)], "any")
    assert patches is not None and patches.lq.shape[1:] == (3, 32, 32)
    assert torch.equal(patches.gt[0], gt[:, :64, 64:128])
    assert patches_of([(lq, gt), (lq[:1], gt[:1])], "any") is None


def test_rows_of_tests_and_teachers_are_looked_at(mcadkd: dict[str, Any], tmp_path: Path) -> None:
    """A network that darkens; its file does not tell it."""
    network, block = nearest_edsr(2, 3)
    with torch.no_grad():
        network.conv_last.bias.fill_(-100)
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    options = {key: mcadkd[key] for key in ("scale", "num_gpu")}
    options |= {"name": "looked_at", "datasets": {"test": {**mcadkd["datasets"]["val"], "phase": "test"}}}
    options |= {"networks": {"dark": {"path": str(tmp_path / "bare.pth"), "network": block}}}
    options |= {"val": {"metrics": mcadkd["val"]["metrics"]}, "report": {"html": False, "plots": False, "speed": False}}
    run_test(options, root=tmp_path)
    log = next((tmp_path / "results").rglob("*.log")).read_text()
    assert log.count("WARNING: dark (EDSR) has ") == 1 and "patches of val, bicubic enlargement" in log
    teacher = {"network_t": block, "path": {"pretrain_network_t": str(tmp_path / "bare.pth")}}
    run = TrainingRun(
        load_options(changed(mcadkd, **teacher), training=True, root=tmp_path), RankInfo(torch.device("cpu")), None
    )
    (remark,) = [line for line in check_fit(run) if line.startswith("network_t (EDSR) has ")]
    assert "patches of val, train, bicubic enlargement" in remark
