"""Exports a trained network to files that other programs load, and checks each by running it against PyTorch.

python scripts/export.py --model experiments/NAME/models/net_g_latest.pth --output exported
python scripts/export.py --model net_g_latest.pth --output exported --formats onnx --precision fp16
python scripts/export.py --model net_g_latest.pth --output exported --formats safetensors --layout spandrel
python scripts/export.py --model HAT_SRx4.pth --output exported --size 128 128
python scripts/export.py --model net_g_latest.pth --output exported --target onnxruntime openvino --precision fp16
python scripts/export.py --list  # which network can be written for which target

docs/shipping.md shows how to load each file, docs/shipping_to_devices.md what the targets are.
"""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.engine.process.command import quiet_start, run_command
from basicsr.utils.process_settings import shorten_spinning

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds
    shorten_spinning()

import torch
from tqdm import tqdm

from basicsr.export.base import export_formats, load_student, names_of
from basicsr.export.checks import Check, shape_text
from basicsr.export.descriptors import listing
from basicsr.export.exporting import OPSETS, export
from basicsr.export.image_sources import int8_images
from basicsr.export.tracing import Precision
from basicsr.quantization.network import quantization_of
from basicsr.utils.complexity import count_parameters
from basicsr.utils.pass_times import warn_if_slow


class _List(argparse.Action):
    """Prints which networks the targets take, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *given: object) -> None:
        print(listing([entry for entry in export_formats().values() if entry.runtime]))
        parser.exit()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    known, targets, precisions = names_of(targets=False), names_of(targets=True), typing.get_args(Precision)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, metavar="FILE", help="checkpoint of the network, .pth or .safetensors")
    add("--output", required=True, metavar="DIR", help="folder of the files; made if there is none")
    add("--formats", nargs="+", choices=known, help="default: all, without --target")
    add("--target", nargs="+", default=[], choices=targets, help="files for devices: docs/shipping_to_devices.md")
    add("--precision", nargs="+", choices=precisions, help="one or several; default: float32")
    add("-opt", type=Path, metavar="FILE", help="for int8: options of the run, for images (default: in its folder)")
    add("--calibration", metavar="DIR", help="for int8: LR images to find ranges on; default: training set")
    add("--validation", nargs="+", metavar="DIR", help="for int8: HR [LR] images for PSNR; default: validation set")
    add("--filename_tmpl", default="{}", metavar="TMPL", help="names of LR in --validation, as '{}x2'; default: {}")
    add(
        "--max-drop",
        type=float,
        default=0.1,
        metavar="DB",
        help="for int8: PSNR that may be lost; default: %(default)s",
    )
    add("--quantize", nargs="+", default=[], metavar="KEY=VALUE", help="for int8: such as layers.body.0=float")
    add("--opset", type=int, default=OPSETS[0], help=f"of ONNX, {OPSETS[0]} to {OPSETS[-1]} (default: %(default)s)")
    add("--layout", default="ours", choices=("ours", "spandrel"), help="of the safetensors file (default: ours)")
    add("--param_key", metavar="KEY", help="which weights of the checkpoint (default: params_ema, else params)")
    add("--scale", type=int, metavar="N", help="of a network for several scales")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="graphs for images of this size only (default: any size)")
    add("--nhwc", action="store_true", help="images with channels last, for --target litert")
    add("--name", help="of the files, without ending (default: the run's name and the scale)")
    add("--list", action=_List, nargs=0, help="print which networks the targets take, and why not others")
    return parser.parse_args(argv)


def table(checks: Sequence[Check]) -> str:
    """All checks as lines of text in columns."""
    rows = [("checked against PyTorch", "input", "max. difference", "allowed")]
    rows += [(c.kind, shape_text(c.shape), f"{c.difference:.1e}", f"{c.tolerance:.1e}") for c in checks]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{kind:<{wide[0]}}  {size:<{wide[1]}}  {difference:>{wide[2]}}  {allowed:>{wide[3]}}"
        for kind, size, difference, allowed in rows
    )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse(argv)
    student = load_student(arguments.model, param_key=arguments.param_key, scale=arguments.scale)
    network = student.pretrained
    size = f"{count_parameters(network.network) / 1e6:.2f} M parameters"
    weights = f", weights: {student.weights}" if student.weights else ""
    print(f"{arguments.model}: {network.architecture} x{network.scale}, {size}{weights}", flush=True)
    if network.remark:
        print(network.remark, file=sys.stderr, flush=True)
    formats = arguments.formats or ([] if arguments.target else names_of(targets=False))
    precisions = arguments.precision or ["float32" if quantization_of(network.network) is None else "int8"]
    if "fp16" in precisions and "torch-export" in formats:  # which computes in it
        for line in warn_if_slow(network.network, torch.device("cpu"), "fp16", "checking --precision fp16"):
            print(f"warning: {line}", file=sys.stderr, flush=True)
    int8 = None
    if "int8" in precisions and arguments.target:
        int8 = int8_images(
            student,
            options_file=arguments.opt,
            calibration=arguments.calibration,
            validation=arguments.validation,
            filename_tmpl=arguments.filename_tmpl,
            settings=arguments.quantize,
            max_drop=arguments.max_drop,
        )
    exported = export(
        student,
        arguments.output,
        formats=formats,
        targets=arguments.target,
        precision=precisions,
        opset=arguments.opset,
        layout=arguments.layout,
        size=None if arguments.size is None else tuple(arguments.size),
        nhwc=arguments.nhwc,
        name=arguments.name,
        int8=int8,
        report=lambda line: print(line, file=sys.stderr, flush=True),
        progress=partial(tqdm, unit="image", leave=False, disable=not sys.stderr.isatty()),
    )
    print(table(exported.checks))
    for loss in exported.losses:
        drop = f"{loss.drop:.3f} dB below the float network's" if loss.drop >= 0 else "no less than the float network's"
        print(f"{loss.kind}: PSNR {loss.psnr:.3f} dB on {loss.images} images, {drop}")
    for path in exported.files:
        print(f"wrote {path} ({size_of(path) / 1e6:.2f} MB)")
    for remark in exported.remarks:
        print(f"note: {remark}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
