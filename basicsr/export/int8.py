"""Export in int8: a network is quantised on images, and what its file loses on others decides whether it is written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from basicsr.config.quantization import QuantizationSettings
from basicsr.export.base import ExportFormat, ExportJob, Student
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.quantization.calibration import Images, calibrate
from basicsr.quantization.network import in_float, quantization_of, quantize_network
from basicsr.quantization.sensitivity import sensitivity
from basicsr.utils.errors import CheckpointError, DataError, NonFiniteError

_NAMED = 5  # layers that a refusal names
Progress = Callable[[Iterable[Any]], Iterable[Any]]


class Pairs(Protocol):
    """Images to measure with: items are dicts with `lq` (C, h, w) and `gt` (C, sh, sw) in [0, 1]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Int8:
    """What an export in int8 needs beside the network.

    Attributes:
        calibration: LR images by name, on which ranges are found; None where the network is quantised already.
        validation: LR and HR images, on which the loss is measured.
        max_drop: PSNR in dB that a file may lose.
        settings: how a float network is quantised.
        crop_border: pixels left out at each edge of HR images; None: the scale.
        on_luma: PSNR of the luma (Y) where images are RGB, not of all colours.
    """

    calibration: Images | None
    validation: Pairs
    max_drop: float = 0.1
    settings: QuantizationSettings = field(default_factory=QuantizationSettings)
    crop_border: int | None = None
    on_luma: bool = True

    def quantized(self, student: Student, progress: Progress = iter) -> Student:
        """The student with fake quantisers and their ranges; the same where it has them already.

        Raises DataError without images for calibration, OptionsError or NonFiniteError as `quantize_network` and
        `calibrate`.
        """
        if quantization_of(student.pretrained.network) is not None:
            return student
        if self.calibration is None:
            raise DataError("there are no images to calibrate with: give --calibration FOLDER with LR images")
        network = copy.deepcopy(student.pretrained.network)
        quantize_network(network, self.settings, channels=student.pretrained.in_channels)
        calibrate(network, self.calibration, report=progress)
        return Student(replace(student.pretrained, network=network), student.source, student.sha256)


@dataclass(frozen=True)
class Loss:
    """What one file lost: mean PSNR in dB over `images`, of its outputs and of the float network's."""

    kind: str
    images: int
    psnr: float
    float_psnr: float

    @property
    def drop(self) -> float:
        """In dB; negative where the file is better."""
        return self.float_psnr - self.psnr


class Judge:
    """Measures files in int8 of one student against its float network, on one set of images."""

    def __init__(self, int8: Int8, student: Student, size: tuple[int, int] | None, progress: Progress = iter) -> None:
        self.int8, self.student, self.size, self.progress = int8, student, size, progress
        self._float_psnr: dict[tuple[int, int] | None, float] = {}

    def float_psnr(self, most: tuple[int, int] | None = None) -> float:
        """Of the float network, in PyTorch, as `psnr`; computed once."""
        network = self.student.pretrained.network
        if most not in self._float_psnr:
            with torch.no_grad(), in_float(network):
                self._float_psnr[most] = self.psnr(network, most)
        return self._float_psnr[most]

    def psnr(self, run: Callable[[Tensor], Tensor], most: tuple[int, int] | None = None) -> float:
        """The mean over all images, of the middle of those that are larger than `most`, (height, width).

        NonFiniteError where an output is not finite, DataError where no image fits.
        """
        found = []
        for index in self.progress(range(len(self.int8.validation))):
            item = self.int8.validation[index]
            if "gt" not in item:
                raise DataError("the validation images have no HR images: give --validation HR LR")
            if (pair := self._cut(item["lq"], item["gt"], most)) is not None:
                output = run(pair[0][None])[0]
                if not output.isfinite().all():
                    raise NonFiniteError(f"the output for {item.get('lq_path', index)} has values that are not finite")
                found.append(self._psnr(output, pair[1]))
        if not found:
            height, width = self.size or (1, 1)
            raise DataError(f"no validation image has {height}x{width} LR pixels or more: give larger ones, or --size")
        return float(np.mean(found))

    def _cut(self, lq: Tensor, gt: Tensor, most: tuple[int, int] | None) -> tuple[Tensor, Tensor] | None:
        """A pair, or its middle where files are for one size or for `most`; None if it is smaller than the one."""
        whole, scale = (lq.shape[-2], lq.shape[-1]), self.student.pretrained.scale
        height, width = self.size or (whole if most is None else tuple(map(min, whole, most)))
        if (height, width) == whole:
            return lq, gt
        top, left = (lq.shape[-2] - height) // 2, (lq.shape[-1] - width) // 2
        if top < 0 or left < 0:
            return None
        rows, columns = slice(top, top + height), slice(left, left + width)
        larger = [slice(part.start * scale, part.stop * scale) for part in (rows, columns)]
        return lq[:, rows, columns].contiguous(), gt[:, larger[0], larger[1]]

    def _psnr(self, output: Tensor, gt: Tensor) -> float:
        """As the tables of the field: of 8-bit images, without a border as wide as the scale."""
        border = self.student.pretrained.scale if self.int8.crop_border is None else self.int8.crop_border
        made, true = (
            (image.clamp(0, 1) * 255).round().flip(0).numpy()  # RGB to BGR
            for image in (output, gt)
        )
        return calculate_psnr(made, true, border, input_order="CHW", test_y_channel=self.int8.on_luma)

    def measured(self, entry: ExportFormat, job: ExportJob, path: Path) -> Loss:
        """Runs a file on the images; CheckpointError, naming the worst layers, where it lost too much."""
        loaded = entry.load(path)
        most = loaded.facts.most
        psnr = self.psnr(job.of_graph(lambda lq: torch.from_numpy(loaded(lq.numpy()))), most)
        loss = Loss(f"{entry.name}, int8", len(self.int8.validation), psnr, self.float_psnr(most))
        if not loss.drop <= self.int8.max_drop:
            raise CheckpointError(
                f"{path.name} was not written: PSNR on {loss.images} images is {psnr:.2f} dB, {loss.drop:.2f} dB below"
                f" the float network's, allowed is {self.int8.max_drop:g} (--max-drop); {self._worst()}"
            )
        return loss

    def _worst(self) -> str:
        """The layers that lose most if they alone are quantised, and what to do."""
        with torch.no_grad():
            found = sensitivity(self.student.pretrained.network, self.psnr)
        worst = found.worst(_NAMED)
        named = ", ".join(f"{name} ({lost:.2f} dB)" for name, lost in worst)
        return (
            f"alone lose most: {named}; leave them in float by --quantize layers.{worst[0][0]}=float, or train with"
            " quantisation"
        )
