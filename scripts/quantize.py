"""Quantises a trained network without training it: ranges from LR images, PSNR before and after, what each layer costs.

python scripts/quantize.py --model net_g_latest.pth --output net_g_int8.pth -opt options/train/edsr/EDSR_x2.yml
python scripts/quantize.py --model net_g_latest.pth --output net_g_int8.pth --calibration LR \\
    --validation Set5/HR Set5/LR_bicubic/X2 --filename_tmpl '{}x2'

The file is a checkpoint as training writes them: test.py, upscale.py and export.py take it. docs/quantization.md says
what is quantised, and what to do where it costs too much.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.engine.process.command import quiet_start, run_command
from basicsr.utils.process_settings import shorten_spinning

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds
    shorten_spinning()

import torch
from pydantic import ValidationError
from torch import nn

from basicsr.config.component_blocks import freeze
from basicsr.config.load import load_options
from basicsr.config.quantization import QuantizationSettings
from basicsr.config.schema import DatasetOptions, Options
from basicsr.data.calibration_images import calibration_images
from basicsr.data.checks.checking import progress
from basicsr.data.loading import build_eval_dataset
from basicsr.files.atomic_files import check_writable, write_atomically
from basicsr.metrics.evaluator import EvaluationDataset, evaluate
from basicsr.quantization.calibration import calibrate
from basicsr.quantization.layers import quantized_layers
from basicsr.quantization.network import in_float, quantize_network
from basicsr.quantization.quantizers import ActivationQuantizer
from basicsr.quantization.records import to_record
from basicsr.quantization.sensitivity import sensitivity
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.registry import problems_of
from basicsr.weights.recognise import Pretrained, check_scale, load_pretrained

_SETTINGS = ("weight_bits", "activations", "first", "last", "ranges", "images")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    kinds = ("int8", "int16", "float")
    add("--model", required=True, metavar="FILE", help="checkpoint of the float network")
    add("--output", required=True, metavar="FILE", help="checkpoint to write, .pth")
    add(
        "-opt",
        metavar="FILE",
        help="training options: LR images of its training sets, its validation sets, train: quantize",
    )
    add("--calibration", metavar="FOLDER", help="LR images for the ranges, in place of the options'")
    add(
        "--validation",
        nargs="+",
        action="append",
        metavar="FOLDER",
        help="HR images, and LR images where they are not to be made by bicubic shrinking; may be given several times",
    )
    add(
        "--filename_tmpl",
        default="{}",
        help="an LR image's name from its HR image's, such as {}x2 (default: %(default)s)",
    )
    add("--weight_bits", type=int, choices=(7, 8), help="8 is for runtimes and CPUs that cannot overflow (default: 7)")
    add("--activations", choices=kinds, help="of layers (default: int8)")
    add("--first", choices=kinds, help="of layers on the image (default: as --activations)")
    add("--last", choices=kinds, help="of layers that make the image (default: as --activations)")
    add("--layers", nargs="+", default=[], metavar="PATTERN=KIND", help="of others by name, such as body.0.*=float")
    add("--ranges", choices=("minmax", "percentile", "mse"), help="how they are found (default: mse)")
    add("--images", type=int, metavar="N", help="for calibration (default: 32)")
    add("--no_sensitivity", action="store_true", help="leave out what each layer costs alone, which takes longest")
    add("--param_key", metavar="KEY", help="which weights of the checkpoint (default: params_ema, else params)")
    add("--scale", type=int, metavar="N", help="of a network for several scales")
    return parser.parse_args(argv)


def settings_of(arguments: argparse.Namespace, options: Options | None) -> QuantizationSettings:
    """The command line's settings, else the options', else the defaults; OptionsError where one is not allowed."""
    data = dict(options.train.quantize.to_data()) if options is not None and options.train.quantize is not None else {}
    data |= {key: value for key in _SETTINGS if (value := getattr(arguments, key)) is not None}
    layers = dict(data.get("layers", {}))
    for text in arguments.layers:
        pattern, equals, kind = text.rpartition("=")
        if not (pattern and equals):
            raise OptionsError(f"--layers {text}: give PATTERN=KIND, such as body.0.*=float")
        layers[pattern] = kind
    try:
        return QuantizationSettings.model_validate(freeze({**data, "layers": layers}))
    except ValidationError as error:
        problem = problems_of(error, data)[0]
        raise OptionsError(f"--{'.'.join(map(str, problem.key))}: {problem.message}") from error


def float_network(arguments: argparse.Namespace) -> Pretrained:
    """The network to quantise; UserError where it is none of ours, or the file to write is no new one."""
    output = Path(arguments.output)
    if output.suffix != ".pth":
        raise OptionsError(f"--output {output}: give the name of a file that ends in .pth")
    if output.resolve() == Path(arguments.model).resolve():
        raise OptionsError(f"--output {output} is the network to be read; give another name")
    found = load_pretrained(arguments.model, param_key=arguments.param_key, only_this=True, scale=arguments.scale)
    check_scale(found, arguments.model, arguments.scale)
    if found.block is None:
        raise CheckpointError(
            f"{arguments.model} is spandrel's {found.architecture}: only the framework's own networks are quantised"
        )
    return found


def _set(name: str, scale: int, **block: Any) -> DatasetOptions:
    data = {"name": name, "phase": "val", "scale": scale, **block}
    return DatasetOptions.model_validate(freeze(data))


def validation_sets(
    arguments: argparse.Namespace, options: Options | None, network: Pretrained
) -> dict[str, EvaluationDataset]:
    """The sets that PSNR is measured on, by name; empty where there are none."""
    if arguments.validation is None:
        blocks = {} if options is None else options.datasets_of("val")
        return {block.name: build_eval_dataset(block) for block in blocks.values()}
    found: dict[str, EvaluationDataset] = {}
    for number, folders in enumerate(arguments.validation, start=1):
        if len(folders) > 2:
            raise OptionsError(f"--validation {' '.join(folders)}: give a folder of HR images, and one of LR images")
        roots = dict(zip(("dataroot_gt", "dataroot_lq"), folders, strict=False))
        template = {"filename_tmpl": arguments.filename_tmpl} if len(folders) > 1 else {}
        block = {"type": "PairedImageDataset", **roots, **template, **_colour(network)}
        name = f"{number}: {folders[0]}"
        found[name] = build_eval_dataset(_set(name, network.scale, **block))
    return found


def _colour(network: Pretrained) -> dict[str, str]:
    return {"color": "y"} if network.in_channels == 1 else {}


def psnr(network: nn.Module, dataset: EvaluationDataset, scale: int, channels: int) -> float:
    """Mean PSNR in dB on 8-bit luma, without `scale` pixels at each edge."""
    metric = {"type": "calculate_psnr", "crop_border": scale, "test_y_channel": channels == 3}
    evaluation = evaluate(network, dataset, {"psnr": metric}, torch.device("cpu"), scale=scale)
    if evaluation is None or not evaluation.metrics:
        raise OptionsError("the validation sets have no HR images, so there is no PSNR; give --validation HR [LR]")
    return evaluation.means()["psnr"]


def shown(title: str, count: int) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A progress bar on a terminal."""
    return lambda items: progress(title, sys.stderr.isatty(), iter(items), count)


def range_text(quantizer: ActivationQuantizer | None) -> str:
    """The values that a quantiser holds, such as '-1.25 to 3.5'."""
    if quantizer is None:
        return "-"
    scale, zero = float(quantizer.scale), int(quantizer.zero_point)
    return f"{(quantizer.quant_min - zero) * scale:.4g} to {(quantizer.quant_max - zero) * scale:.4g}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    names = [row[0].ljust(widths[0]) for row in rows]
    return "\n".join("  ".join([name, *row[1:]]).rstrip() for name, row in zip(names, cells, strict=True))


def layer_rows(network: nn.Module, alone: Mapping[str, float], unquantized: float) -> list[list[str]]:
    """For each layer its numbers, ranges and, where it was measured, what it costs alone in dB."""
    rows = [["layer", "integers", "input", "output", *(["PSNR lost alone, dB"] if alone else [])]]
    for name, layer in quantized_layers(network).items():
        ranges = [range_text(quantizer) for quantizer in (layer.input_quantizer, layer.output_quantizer)]
        lost = [f"{unquantized - alone[name]:+.4f}"] if alone else []
        rows.append([name, layer.plan.integers, *ranges, *lost])
    return rows


def write(path: Path, found: Pretrained) -> None:
    """Saves the checkpoint, whole or not at all."""
    content = {
        "params": found.network.state_dict(),
        "network": {**(found.block or {}), "scale": found.scale},
        "quantization": to_record(found.network),
    }
    if training := found.metadata.get("training"):
        content["training"] = training

    def save(file: BinaryIO) -> None:
        torch.save(content, file)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make {path.parent}: {error.strerror}") from error
    write_atomically(path, save)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse(argv)
    if arguments.opt is None and arguments.calibration is None:
        raise OptionsError("there are no images for calibration: give -opt FILE or --calibration FOLDER")
    options = None if arguments.opt is None else load_options(arguments.opt, training=True, paths=False)
    settings = settings_of(arguments, options)
    found = float_network(arguments)
    if options is not None and options.scale != found.scale:
        raise OptionsError(f"{arguments.opt} is for x{options.scale}, {arguments.model} for x{found.scale}")
    output, network, channels = Path(arguments.output), found.network, found.in_channels
    check_writable(output.parent)
    if output.is_dir():
        raise CheckpointError(f"cannot save {output}: there is a folder of this name; give another")
    sets = validation_sets(arguments, options, found)
    if arguments.calibration is not None:
        block = {"type": "SingleImageDataset", "dataroot_lq": arguments.calibration, **_colour(found)}
        blocks = [_set("calibration", found.scale, **block)]
    else:
        assert options is not None
        blocks = list(options.datasets_of("train").values())
    images = calibration_images(blocks, settings.images, all_readable=arguments.calibration is not None)
    quantization = quantize_network(network, settings, channels=channels)
    calibrate(network, images, report=shown("Calibrating", len(images)))
    print(f"{arguments.model}: {found.architecture} x{found.scale}, {quantization}, calibrated on {len(images)} images")
    figure = partial(psnr, scale=found.scale, channels=channels)
    rows = [["PSNR, dB", "float", "quantised", "lost"]]
    for name, dataset in sets.items():
        with in_float(network):
            before = figure(network, dataset)
        after = figure(network, dataset)
        rows.append([name, f"{before:.3f}", f"{after:.3f}", f"{before - after:+.3f}"])
    if sets:
        print(table(rows), flush=True)
    alone: dict[str, float] = {}
    unquantized = 0.0
    if sets and not arguments.no_sensitivity:
        names = list(quantized_layers(network))
        measured = sensitivity(
            network,
            lambda network: sum(figure(network, dataset) for dataset in sets.values()) / len(sets),
            report=shown("Layer by layer", len(names)),
        )
        alone, unquantized = measured.alone, measured.unquantized
    print(table(layer_rows(network, alone, unquantized)))
    write(output, found)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
