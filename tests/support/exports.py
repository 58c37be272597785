"""Exported networks, each exported once, and what runs their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.config.quantization import QuantizationSettings
from basicsr.export.base import Student, load_student
from basicsr.export.exporting import Exported, export
from basicsr.export.int8 import Int8


@dataclass
class Made:
    network: nn.Module
    block: dict[str, Any]
    source: Path
    exported: Exported

    @property
    def file(self) -> dict[str, Path]:
        return {path.suffix: path for path in self.exported.files}


def exporter(
    folder_of: Callable[[str], Path],
    build: Callable[..., tuple[nn.Module, dict[str, Any]]],
    save: Callable[[Path, nn.Module, dict[str, Any]], Path],
) -> Callable[..., Made]:
    """A function that exports what `build` makes of its arguments once to all formats."""

    @cache
    def make(*arguments: Any, precision: str = "float32") -> Made:
        folder = folder_of("exported")
        network, block = build(*arguments)
        source = save(folder / "net_g_latest.pth", network, block)
        return Made(network, block, source, export(load_student(source), folder / "out", precision=precision))

    return make


def int8_of(student: Student, *, max_drop: float = 0.5, **settings: Any) -> Int8:
    """Images to quantise on, and pairs whose HR images are the float network's outputs with some noise."""
    network, channels, scale = student.pretrained.network, student.pretrained.in_channels, student.pretrained.scale
    generator = torch.Generator().manual_seed(3)
    small = [torch.rand(1, channels, 6, 7, generator=generator) for _ in range(4)]
    lqs = [(F.interpolate(image, (36, 41), mode="bicubic").clamp(0, 1) * 255).round()[0] / 255 for image in small]
    pairs = []
    for number, lq in enumerate(lqs[2:]):
        output = output_of(network, lq[None])[0]
        gt = (output + torch.randn(output.shape, generator=generator) * 0.02).clamp(0, 1)
        pairs.append({"lq": lq, "gt": gt, "lq_path": f"{number}.png"})
    calibration = [(f"{number}.png", lq) for number, lq in enumerate(lqs)]
    return Int8(calibration, pairs, max_drop, QuantizationSettings(**settings), crop_border=scale)


def images(sizes: Sequence[tuple[int, int, int]], channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(batch, channels, height, width, generator=generator) for batch, height, width in sizes]


def output_of(network: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return network(image)


def onnx_output(path: Path, image: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["output"], {"input": image.numpy()})[0])
