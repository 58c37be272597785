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

from basicsr.export.base import load_student
from basicsr.export.exporting import Exported, export


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


def images(sizes: Sequence[tuple[int, int, int]], channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(batch, channels, height, width, generator=generator) for batch, height, width in sizes]


def output_of(network: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return network(image)


def onnx_output(path: Path, image: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["output"], {"input": image.numpy()})[0])
