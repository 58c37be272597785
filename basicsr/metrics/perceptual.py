"""LPIPS, DISTS, NIQE and every other metric of the optional package pyiqa, which downloads weights on first use."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import torch

from basicsr.metrics import Direction, Traits, described
from basicsr.metrics.metric_util import check_crop_border, check_same_shape
from basicsr.metrics.psnr_ssim import eight_bit_levels
from basicsr.utils.errors import DataError, MachineError, OptionsError
from basicsr.utils.ranges import Border
from basicsr.utils.registry import METRIC_REGISTRY
from basicsr.utils.text import nearest
from basicsr.utils.torchvision_import import import_torchvision

_INSTALL = "install it: pip install -e .[metrics]"
_LPIPS = {"alex": "lpips", "vgg": "lpips-vgg"}
_TRIAL_SIZE = 256  # pixels a side: more than any network of pyiqa asks for


def _traits(arguments: Mapping[str, Any]) -> Traits:
    configuration = _configuration(arguments["metric"])
    better: Direction = "lower" if configuration.get("lower_better") else "higher"
    return Traits(better, needs_reference=configuration.get("metric_mode") == "FR", only_colours=True)


@METRIC_REGISTRY.register()
@described(
    traits=lambda _: Traits("lower", only_colours=True),
    prepare=lambda given, device: _try_out(_LPIPS[given.get("net", "alex")], device),
)
def calculate_lpips(
    img: torch.Tensor,
    img2: torch.Tensor,
    crop_border: Border = 0,
    net: Literal["alex", "vgg"] = "alex",
    round_to_8_bits: bool = True,
) -> torch.Tensor:
    """LPIPS 0.1 (Zhang et al., CVPR 2018) of each image, (B,) float64; 0 for equal images, lower is better.

    Args:
        img: (B, C, H, W) RGB in [0, 1], of any floating type.
        img2: of the same shape.
        crop_border: pixels to leave out at each edge.
        net: whose features are compared: AlexNet's, or VGG16's.
        round_to_8_bits: clip and round both, as images are when they are saved.

    Raises:
        MachineError: pyiqa is not installed, or its weights cannot be downloaded.
        DataError, OptionsError: as `calculate_psnr_pt`.
    """
    return _figures(_LPIPS[net], img, img2, crop_border, round_to_8_bits)


@METRIC_REGISTRY.register()
@described(traits=lambda _: Traits("lower", only_colours=True), prepare=lambda _, device: _try_out("dists", device))
def calculate_dists(
    img: torch.Tensor, img2: torch.Tensor, crop_border: Border = 0, round_to_8_bits: bool = True
) -> torch.Tensor:
    """DISTS (Ding et al., TPAMI 2020) of each image; 0 for equal images, lower is better; else as `calculate_lpips`."""
    return _figures("dists", img, img2, crop_border, round_to_8_bits)


@METRIC_REGISTRY.register()
@described(
    traits=lambda _: Traits("lower", False, only_colours=True), prepare=lambda _, device: _try_out("niqe", device)
)
def calculate_niqe(img: torch.Tensor, crop_border: Border = 0, round_to_8_bits: bool = True) -> torch.Tensor:
    """NIQE (Mittal et al., IEEE SPL 2013) of each image, lower is better; else as `calculate_lpips`."""
    return _figures("niqe", img, None, crop_border, round_to_8_bits)


@METRIC_REGISTRY.register()
@described(traits=_traits, prepare=lambda given, device: _try_out(given["metric"], device))
def calculate_pyiqa(
    img: torch.Tensor,
    img2: torch.Tensor | None = None,
    *,
    metric: str,
    crop_border: Border = 0,
    round_to_8_bits: bool = True,
) -> torch.Tensor:
    """The metric that pyiqa calls `metric`, if it judges single images; else as `calculate_lpips`.

    Raises OptionsError for any other.

    Args:
        img: as `calculate_lpips`.
        img2: likewise; unused by a metric without a reference.
        metric: pyiqa's name of it; `pyiqa.list_models()` lists them.
        crop_border: pixels to leave out at each edge.
        round_to_8_bits: clip and round both, as images are when they are saved.
    """
    reference = img2 if _configuration(metric).get("metric_mode") == "FR" else None
    return _figures(metric, img, reference, crop_border, round_to_8_bits)


def _figures(
    name: str, img: torch.Tensor, img2: torch.Tensor | None, crop_border: int, round_to_8_bits: bool
) -> torch.Tensor:
    model = _load(name, img.device)
    if img2 is not None:
        check_same_shape(img.shape, img2.shape)
    height, width = img.shape[-2:]
    check_crop_border(crop_border, height, width)
    given = []
    for images in (img,) if img2 is None else (img, img2):
        inner = images[..., crop_border : height - crop_border, crop_border : width - crop_border]
        unit = eight_bit_levels(inner) / 255 if round_to_8_bits else inner.detach().float().clamp(0, 1)
        given.append(unit.expand(-1, 3, -1, -1))
    try:
        return _run(model, given)
    except Exception as error:  # another package's network raises anything
        raise DataError(
            f"pyiqa's {name} fails on images of {height} x {width} pixels, crop_border {crop_border}: {_line(error)}"
        ) from error


@torch.no_grad()
def _run(model: Any, images: list[torch.Tensor]) -> torch.Tensor:
    figures = torch.as_tensor(model(*images)).double().reshape(-1)
    if len(figures) != len(images[0]):
        raise ValueError(f"{len(figures)} figures for {len(images[0])} images")
    return figures


def _try_out(name: str, device: torch.device) -> None:
    """Loads a metric and runs it once: some need a text, or a set of images, which loading does not show."""
    model = _load(name, device)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, 3, _TRIAL_SIZE, _TRIAL_SIZE, generator=generator).to(device)
    count = 2 if _configuration(name).get("metric_mode") == "FR" else 1
    try:
        _run(model, list(images[:count]))
    except Exception as error:  # another package's network raises anything
        raise OptionsError(f"pyiqa's {name} does not judge single images: {_line(error)}; take another") from error


@functools.cache
def _load(name: str, device: torch.device) -> Any:
    _configuration(name)
    try:
        return _pyiqa().create_metric(name, device=device)
    except OSError as error:
        raise MachineError(
            f"pyiqa's {name} has no weights here, and they cannot be downloaded ({_line(error)}); let this machine"
            f" reach the network once, or copy the folder {torch.hub.get_dir()} from a machine that has them"
        ) from error
    except Exception as error:  # another package's network raises anything
        raise MachineError(f"pyiqa's {name} cannot be loaded: {_line(error)}") from error


def _configuration(name: str) -> Mapping[str, Any]:
    """pyiqa's description of a metric: `metric_mode` (FR with a reference, NR without), `lower_better`."""
    _pyiqa()
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    if name not in DEFAULT_CONFIGS:
        raise OptionsError(f"pyiqa has no metric '{name}'{nearest(name, list(DEFAULT_CONFIGS))}")
    configuration: Mapping[str, Any] = DEFAULT_CONFIGS[name]
    return configuration


def _pyiqa() -> Any:
    import_torchvision()  # pyiqa imports it, in whatever state it is
    try:
        import pyiqa
    except Exception as error:  # a package that does not fit its neighbours raises anything
        if isinstance(error, ModuleNotFoundError) and error.name == "pyiqa":
            raise MachineError(f"LPIPS, DISTS, NIQE and calculate_pyiqa need the package pyiqa; {_INSTALL}") from error
        raise MachineError(f"pyiqa does not import ({_line(error)}); {_INSTALL}") from error
    return pyiqa


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
