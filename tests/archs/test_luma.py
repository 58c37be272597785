"""Networks of gray images on RGB images: alone, as teachers, in tests and in caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.caching import make
from support.networks import nearest_edsr, save_checkpoint
from support.tiny_run import EDSR
from support.training import changed
from torch import nn

from basicsr.archs import build_network
from basicsr.archs.luma import LumaNetwork
from basicsr.config.load import load_options
from basicsr.files.images import imfrombytes, img2tensor
from basicsr.inference.trials import for_colours, on_images_of
from basicsr.models import build_model
from basicsr.test import test_pipeline as run_test
from basicsr.utils.color_util import rgb2ycbcr, ycbcr2rgb
from basicsr.utils.matlab_functions import imresize

CPU = torch.device("cpu")
GRAY = {**EDSR, "num_in_ch": 1, "num_out_ch": 1, "rgb_mean": [0.5]}
SHORT = {"train__adversarial_opt": None, "network_d": None, "train__contrastive_opt": None}


def by_hand(network: nn.Module, rgb: np.ndarray, scale: int) -> np.ndarray:
    """(h, w, 3) in [0, 1] to (sh, sw, 3), in float64 but for the network."""
    ycbcr = rgb2ycbcr(rgb.astype(np.float64))
    large = imresize(ycbcr, scale)
    with torch.no_grad():
        large[..., 0] = network(torch.from_numpy(ycbcr[None, None, ..., 0]).float())[0, 0].numpy()
    return ycbcr2rgb(large)


@pytest.mark.parametrize(
    ("block", "scale"),
    [
        (GRAY, 2),
        ({"type": "VDSR", "num_feat": 8, "num_layer": 5, "upscale": 3}, 3),
        ({"type": "DnCNN", "img_channel": 1}, 1),
    ],
    ids=lambda entry: str(entry["type"]) if isinstance(entry, dict) else f"x{entry}",
)
@torch.no_grad()
def test_luma_goes_through_the_network_and_chroma_is_enlarged_by_bicubic(block: dict[str, Any], scale: int) -> None:
    torch.manual_seed(0)
    network = build_network(block).eval()
    wrapped = for_colours(network)
    assert isinstance(wrapped, LumaNetwork) and wrapped.architecture == block["type"]
    images = torch.rand(2, 3, 9, 7)
    outputs = wrapped(images)
    for image, output in zip(images, outputs, strict=True):
        expected = by_hand(network, image.permute(1, 2, 0).numpy(), scale)
        assert np.abs(output.permute(1, 2, 0).numpy() - expected).max() < 1e-5
    assert torch.equal(wrapped(images[:, :1]), network(images[:, :1]))


def test_gradients_reach_the_network_and_the_image() -> None:
    network, images = LumaNetwork(build_network(GRAY), 2), torch.rand(1, 3, 8, 8, requires_grad=True)
    network(images).square().sum().backward()
    assert images.grad is not None and images.grad.abs().min() > 0
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_networks_of_colours_and_teachers_of_gray_students_stay_as_they_are() -> None:
    colour, gray = build_network(EDSR), build_network(GRAY)
    assert for_colours(colour) is colour
    for student, teacher in ((colour, colour), (gray, gray), (gray, colour)):
        assert on_images_of(student, teacher) is teacher
    for block in (
        {"type": "FFDNet", "img_channel": 3},
        {"type": "RRDBNet", "scale": 2, "num_in_ch": 3, "num_out_ch": 3},
    ):
        network = build_network({**block, "num_feat": 8})
        assert for_colours(network) is network
    assert isinstance(on_images_of(colour, gray), LumaNetwork)
    assert isinstance(for_colours(build_network({"type": "FFDNet", "img_channel": 1, "num_feat": 8})), LumaNetwork)


@pytest.fixture
def gray_teacher(mcadkd: dict[str, Any], tmp_path: Path) -> tuple[nn.Module, dict[str, Any]]:
    network, block = nearest_edsr(2, 1)
    file = save_checkpoint(tmp_path / "gray.pth", network, block, 2)
    return network.eval(), changed(mcadkd, **SHORT, network_t={"type": "auto"}, path={"pretrain_network_t": str(file)})


def test_a_gray_teacher_teaches_a_student_of_colours(gray_teacher: Any, tmp_path: Path) -> None:
    network, options = gray_teacher
    terms = {"several": {"type": "SeveralTeachers", "teachers": [{"path": options["path"]["pretrain_network_t"]}]}}
    options = changed(options, train__distill=terms)
    model, remarks = build_model(load_options(options, training=True, root=tmp_path), CPU)
    assert model.teacher is not None
    images = torch.rand(1, 3, 6, 5)
    expected = by_hand(network, images[0].permute(1, 2, 0).numpy(), 2)
    further = model.terms["several"].further_networks()["teachers[0].network"]
    for teacher in (model.teacher, further):
        assert np.abs(teacher(images)[0].permute(1, 2, 0).numpy() - expected).max() < 1e-5
    assert sum("it takes gray images: of RGB images Y goes through it" in remark for remark in remarks) == 2
    assert not any("enlarge" in key or "teacher" in key for key in model.state_dict())


def test_a_cache_of_a_gray_teacher_holds_colours(gray_teacher: Any) -> None:
    network, options = gray_teacher
    made = make(options)
    images = sorted(Path(options["datasets"]["train"]["dataroot_lq"]).iterdir())
    given = img2tensor(imfrombytes(images[0].read_bytes(), float32=True)).permute(1, 2, 0).numpy()
    stored = imfrombytes((made.folder / f"{images[0].stem.removesuffix('x2')}.ppm").read_bytes())
    levels = stored[..., ::-1].astype(np.float64) / 65535 * 2 - 0.5  # a cache holds [-0.5, 1.5]
    assert np.abs(levels - by_hand(network, given, 2)).max() < 2e-5 + 1 / 65535


def test_rows_of_a_test_run_on_luma_and_say_so(gray_teacher: Any, tmp_path: Path) -> None:
    network, options = gray_teacher
    file = options["path"]["pretrain_network_t"]
    test = {key: options[key] for key in ("scale", "num_gpu")}
    test |= {"name": "gray_rows", "datasets": {"test": {**options["datasets"]["val"], "phase": "test"}}}
    test |= {"networks": {"gray": {"path": file}, "bicubic": {"type": "bicubic"}}}
    metric = {"type": "calculate_psnr", "crop_border": 0}
    test |= {"val": {"metrics": {"psnr": metric, "luma": {**metric, "test_y_channel": True}}}}
    test |= {"report": {"html": False, "plots": False, "speed": False}}
    results = run_test(test, root=tmp_path)
    (row, _), lr, hr = (
        results.scales[0].rows,
        *(Path(options["datasets"]["val"][key]) for key in ("dataroot_lq", "dataroot_gt")),
    )
    for name, values in zip(row.evaluations["val"].images, row.evaluations["val"].values, strict=True):
        given, wanted = (
            img2tensor(imfrombytes(path.read_bytes(), float32=True)).permute(1, 2, 0).numpy()
            for path in (lr / f"{name}.png", hr / f"{name.removesuffix('x2')}.png")
        )
        output = (by_hand(network, given, 2).clip(0, 1) * 255).round()
        error = output - (wanted * 255).round()[: output.shape[0], : output.shape[1]]
        assert values[0] == pytest.approx(10 * np.log10(255**2 / np.square(error).mean()), abs=1e-2)
    assert row.multiply_adds and row.parameters == sum(parameter.numel() for parameter in network.parameters())
    log = next((tmp_path / "results").rglob("*.log")).read_text()
    assert "gray: it takes gray images: of RGB images Y goes through it, and chroma is enlarged by bicubic" in log
