"""Where an export in int8 has its images from: the options file of the training run, or folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from basicsr.config.component_blocks import freeze
from basicsr.config.load import load_options, no_warning
from basicsr.config.quantization import QuantizationSettings
from basicsr.config.schema import DatasetOptions, Options
from basicsr.data.calibration_images import calibration_images
from basicsr.data.loading import build_eval_dataset
from basicsr.export.base import Student
from basicsr.export.int8 import Int8, Pairs
from basicsr.quantization.calibration import Images
from basicsr.quantization.network import quantization_of
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.registry import problems_of

_HOW = "give -opt with the run's options file, or --calibration FOLDER and --validation HR LR"


def int8_images(
    student: Student,
    *,
    options_file: Path | None = None,
    calibration: str | None = None,
    validation: Sequence[str] | None = None,
    filename_tmpl: str = "{}",
    settings: Sequence[str] = (),
    max_drop: float = 0.1,
) -> Int8:
    """The images and settings for an export in int8.

    Args:
        student: what is exported.
        options_file: of the training run; None finds it in the run's folder, where the checkpoint lies in one.
        calibration: folder of LR images; None takes the options' training set.
        validation: folder of HR images, and of LR images; without these, LR is MATLAB's bicubic of HR. None takes the
            options' first validation set.
        filename_tmpl: of LR images in `validation`, such as '{}x2'.
        settings: of `QuantizationSettings`, as KEY=VALUE.
        max_drop: PSNR in dB that a file may lose.

    Raises:
        OptionsError, DataError: no images are named, or they do not fit; one line.
    """
    if not 0 <= max_drop < float("inf"):
        raise OptionsError(f"--max-drop {max_drop}: give a number of dB from 0 on")
    network = student.pretrained
    quantized = quantization_of(network.network) is not None
    if quantized and (settings or calibration):
        given = "--quantize" if settings else "--calibration"
        raise OptionsError(f"{given}: {student.source} is quantised already, and has its ranges; leave {given} out")
    options = None
    if validation is None or not (calibration or quantized):
        options = _options(student, options_file)
    own = None if options is None else options.train.quantize
    chosen = settings_of(settings, {} if own is None else own.to_data())
    images: Images | None = None
    if not quantized:
        sets = [] if options is None else list(options.datasets_of("train").values())
        sets = [_folder(student, dataroot_lq=calibration)] if calibration else sets
        if not sets:
            raise DataError(f"int8 needs LR images to calibrate with: {_HOW}")
        images = calibration_images(sets, chosen.images, all_readable=calibration is not None)
        if not images:
            raise DataError(f"none of the LR images to calibrate with can be read: {_HOW}")
    pairs = _pairs(student, options, validation, filename_tmpl)
    for name, item in (("--calibration", images[0][1] if images else None), ("--validation", pairs[0]["lq"])):
        if item is not None and item.shape[0] != network.in_channels:
            raise DataError(f"{name}: images have {item.shape[0]} channels, the network takes {network.in_channels}")
    metric = _psnr_block(options)
    border = metric.get("crop_border", options.crop_border if options else None)
    return Int8(images, pairs, max_drop, chosen, border, metric.get("test_y_channel", True))


def settings_of(texts: Sequence[str], options: Mapping[str, Any] = {}) -> QuantizationSettings:
    """`QuantizationSettings` from KEY=VALUE, such as weight_bits=8 or layers.body.0=float, and what `options` say."""
    data: dict[str, Any] = {**options, "layers": dict(options.get("layers", {}))}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise OptionsError(f"--quantize {text}: give KEY=VALUE, such as weight_bits=8 or layers.body.0=float")
        section, dot, pattern = key.partition(".")
        if dot and section == "layers":
            data["layers"][pattern] = value
        else:
            data[key] = int(value) if value.isdecimal() else value
    try:
        return QuantizationSettings.model_validate(freeze(data))
    except ValidationError as error:
        problem = problems_of(error, data)[0]
        raise OptionsError(f"--quantize {'.'.join(map(str, problem.key))}: {problem.message}") from error


def _options(student: Student, file: Path | None) -> Options | None:
    """The options of the run: of the file named, else of the one in the folder where the checkpoint lies."""
    if file is None:
        folder = student.source.resolve().parent.parent
        file = folder / f"{folder.name}.yml"
        if student.source.resolve().parent.name != "models" or not file.is_file():
            return None
    options = load_options(file, training=True, paths=False, warn=no_warning)
    if options.scale != student.pretrained.scale:
        raise OptionsError(
            f"{file} is for scale {options.scale}, the network for {student.pretrained.scale}: give -opt with the"
            " options that it was trained by"
        )
    return options


def _pairs(student: Student, options: Options | None, folders: Sequence[str] | None, template: str) -> Pairs:
    """The validation set."""
    if folders is not None:
        if len(folders) > 2:
            raise OptionsError(f"--validation {' '.join(folders)}: give a folder of HR images, and one of LR images")
        roots = dict(zip(("dataroot_gt", "dataroot_lq"), folders, strict=False))
        return build_eval_dataset(
            _folder(student, **roots, **({"filename_tmpl": template} if len(folders) > 1 else {}))
        )
    found = {} if options is None else options.datasets_of("val")
    block = next(iter(found.values()), None)
    if block is None:
        raise DataError(f"int8 needs HR and LR images to measure its loss on: {_HOW}")
    return build_eval_dataset(block)


def _folder(student: Student, **folders: str) -> DatasetOptions:
    color = {"color": "gray"} if student.pretrained.in_channels == 1 else {}
    name, scale = next(iter(folders.values())), student.pretrained.scale
    given = {"type": "PairedImageDataset", "name": name, "phase": "val", "scale": scale, **color, **folders}
    return DatasetOptions.model_validate(given)


def _psnr_block(options: Options | None) -> Mapping[str, Any]:
    """How the options measure PSNR."""
    blocks = [] if options is None else options.val.metrics.values()
    return next((block for block in blocks if block.get("type") == "calculate_psnr"), {})
