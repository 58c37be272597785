"""Prints parameters and multiply-adds of every network in an options file, or what a file of weights holds.

    python scripts/model_info.py -opt options/train/mcadkd_edsr_x4.yml [--input 3 256 256]
    python scripts/model_info.py --model FILE [--input 3 256 256] [--names]

The convention is that of the papers' tables: see basicsr/utils/complexity.py; convolutions trained as branches count as
they are shipped. The input is one image as the network
gets it: the low-resolution one for super-resolution, the high-resolution one for a discriminator. What --model
recognises, and what it takes for granted, is in docs/pretrained.md. --names lists its modules, as `train: freeze` and
`train: param_groups` name them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.engine.process.command import quiet_start, run_command
from basicsr.utils.process_settings import shorten_spinning

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds
    shorten_spinning()

from torch import nn

from basicsr.archs import build_network
from basicsr.config.component_blocks import is_auto
from basicsr.config.load import load_options, load_test_options
from basicsr.config.schema import FrozenMapping, Options
from basicsr.config.yaml_files import load_yaml
from basicsr.quantization.network import quantization_of
from basicsr.utils.complexity import count_multiply_adds, count_parameters
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.reparameterization import mergeable
from basicsr.utils.text import printable
from basicsr.weights.recognise import Pretrained, load_pretrained, scales_text

_LONGEST = 400


def load_each_scale(path: str) -> list[tuple[str, Options]]:
    """The options; of a test at several scales those of each, with a prefix such as 'x2 ' for its networks' names."""
    if "train" in load_yaml(path).data():
        return [("", load_options(path, training=True, paths=False))]
    loaded = load_test_options(path, paths=False)
    return [(f"x{options.scale} " if len(loaded) > 1 else "", options) for options in loaded]


def networks_of(options: Options) -> Iterator[tuple[str, Mapping[str, Any], str | None]]:
    """Yields name, options and file of every network: network_g, network_t, network_d, and a test's rows."""
    for label in ("g", "t", "d"):
        if (block := getattr(options, f"network_{label}")) is not None:
            yield f"network_{label}", block, getattr(options.path, f"pretrain_network_{label}")
    for name, row in options.networks.items():
        if row.network is not None:
            yield name, row.network, row.path
        elif options.network_g is None and row.type is None:
            yield name, {"type": "auto"}, row.path


def describe(
    name: str, block: Mapping[str, Any], path: str | None, input_shape: tuple[int, int, int]
) -> tuple[str, ...]:
    """Returns a row of the table: name, type, parameters in millions, multiply-adds in billions."""
    # Rows of a test are often one network with several weights: that is measured once.
    return name, *_measured(FrozenMapping(block), path if is_auto(block) else None, input_shape)


@cache
def _measured(block: FrozenMapping, path: str | None, input_shape: tuple[int, int, int]) -> tuple[str, str, str]:
    kind = str(block["type"])
    if is_auto(block):
        assert path is not None, "the options' checks see to it that a network to recognise has its file"
        pretrained = load_pretrained(path)
        network, kind = pretrained.network, pretrained.architecture
    else:
        network = build_network(block)
    return kind, f"{count_parameters(network) / 1e6:.2f}", cost_of(network, input_shape)


def cost_of(network: nn.Module, input_shape: tuple[int, int, int]) -> str:
    """Multiply-adds in billions, or why there are none to tell."""
    try:
        return f"{count_multiply_adds(network, input_shape) / 1e9:.2f}"
    except DataError as error:
        return f"- ({error})"


def names_in(network: nn.Module) -> str:
    """The modules that have parameters of their own, a line each: name, class, number of parameters."""
    owners = [
        (name, type(module).__name__, sum(parameter.numel() for parameter in module.parameters(recurse=False)))
        for name, module in network.named_modules()
    ]
    rows = [(name or "(the network itself)", kind, f"{count:,d}") for name, kind, count in owners if count]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"{row[0].ljust(widths[0])}  {row[1].ljust(widths[1])}  {row[2].rjust(widths[2])}" for row in rows)


def report(path: str, given_shape: tuple[int, int, int] | None, names: bool = False) -> str:
    """What a file of weights holds, an item a line, and its modules where `names` are asked for."""
    pretrained = load_pretrained(path)
    shape = given_shape or (pretrained.in_channels, 256, 256)
    adds = f"multiply-adds (G) at {'x'.join(map(str, shape))}"
    options = {key: value for key, value in (pretrained.block or {}).items() if key != "type"}
    items: list[tuple[str, object]] = [
        ("architecture", pretrained.architecture),
        ("layout", pretrained.layout),
        ("scale", scales_text(pretrained.scales or (pretrained.scale,))),
        ("colours", f"{pretrained.in_channels} in, {pretrained.out_channels} out"),
        *range_and_mean(pretrained),
        *options.items(),
        ("parameters (M)", f"{count_parameters(pretrained.network) / 1e6:.2f}"),
    ]
    if mergeable(pretrained.network):
        branches = sum(parameter.numel() for parameter in pretrained.network.parameters()) / 1e6
        items[-1] = ("parameters (M)", f"{items[-1][1]} as shipped, {branches:.2f} in training, in branches")
    if pretrained.scales:
        each = {scale: load_pretrained(path, scale=scale).network for scale in pretrained.scales}
        items += [(f"{adds}, x{scale}", cost_of(network, shape)) for scale, network in each.items()]
    else:
        items.append((adds, cost_of(pretrained.network, shape)))
    items += [
        ("weights", f"under '{pretrained.weights}'" if pretrained.weights else "at the top of the file"),
        ("can be", "; ".join(uses(pretrained))),
        *flattened(pretrained.metadata),
    ]
    if (quantization := quantization_of(pretrained.network)) is not None:
        items.append(("weights and activations", str(quantization)))
    items += [("remark", pretrained.remark)] if pretrained.remark else []
    width = max(len(key) for key, _ in items)
    lines = [f"{key.ljust(width)}  {shown(value)}" for key, value in items]
    return "\n".join([*lines, "", names_in(pretrained.network)] if names else lines)


def range_and_mean(pretrained: Pretrained) -> list[tuple[str, object]]:
    """What the network does with images in [0, 1], and whence that is known."""
    if pretrained.block is None:
        return [("range and mean", "as spandrel's code has them for this architecture")]
    if pretrained.layout == "ours":
        known = "recorded in the file"
    elif any(word in entry for entry in pretrained.assumed for word in ("range", "mean")):
        known = "taken as published"
    elif pretrained.layout in ("EDSR-PyTorch", "RCAN's original"):
        known = "read from the weights"
    else:
        known = "a fact of this architecture"
    return [("range and mean", known)]


def uses(pretrained: Pretrained) -> list[str]:
    """What the network can be used for."""
    if pretrained.only_size is not None:
        height, width = pretrained.only_size
        return [f"a teacher at {height}x{width} pixels only", f"exported with --size {height} {width}"]
    student = "a student" if pretrained.block is not None else "trained further (type: auto)"
    exported = "exported" if pretrained.block is not None else "exported, graphs of many with --size H W only"
    return ["a teacher", student, exported]


def flattened(metadata: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Entries of nested mappings under names such as 'training best Set5 psnr value'."""
    items: list[tuple[str, Any]] = []
    for key, value in metadata.items():
        name = f"{prefix}{shown(key)}"
        items += flattened(value, f"{name} ") if isinstance(value, Mapping) else [(name, value)]
    return items


def shown(value: object) -> str:
    """A value as text for a terminal: files of others may hold anything."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = ", ".join(map(shown, value)) if isinstance(value, (list, tuple)) else str(value)
    return printable(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Lays rows of text out in columns, numbers (all columns from the third) to the right."""
    widths = [max(len(row[column]) for row in rows if not row[column].startswith("-")) for column in range(4)]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-opt", metavar="FILE", help="options file, of training or testing")
    source.add_argument("--model", metavar="FILE", help="file of weights, whose network is recognised")
    parser.add_argument("--names", action="store_true", help="with --model: list the network's modules")
    parser.add_argument(
        "--input", nargs=3, type=int, metavar=("C", "H", "W"), help="default: the network's colours, else 3, 256 256"
    )
    arguments = parser.parse_args(argv)
    channels, height, width = shape = tuple(arguments.input or (3, 256, 256))
    if min(shape) < 1:
        raise OptionsError(f"--input {channels} {height} {width}: give three numbers of at least 1")
    if arguments.model is not None:
        print(report(arguments.model, shape if arguments.input else None, arguments.names))
        return 0
    if arguments.names:
        raise OptionsError("--names lists the modules of a file of weights: give --model FILE")
    rows: list[tuple[str, ...]] = [
        ("network", "type", "parameters (M)", f"multiply-adds (G) at {channels}x{height}x{width}")
    ]
    for prefix, options in load_each_scale(arguments.opt):
        rows += [describe(prefix + name, block, path, shape) for name, block, path in networks_of(options)]
    print(aligned(rows))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
