"""Mixes networks of one architecture in their weights, for anything between them: sharper or smoother, as ESRGAN's.

python scripts/interpolate.py --model psnr.pth gan.pth --alpha 0.8 --output mixed.pth
python scripts/interpolate.py --model psnr.pth gan.pth --alpha 0:1:0.1 --output mixed
python scripts/interpolate.py --model a.pth b.pth c.pth --alpha 0.5 0.3 0.2 --output mixed.pth

Of two networks A and B the result is (1 - alpha) A + alpha B. docs/shipping.md says when that is of use.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.engine.process.command import quiet_start, run_command

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

import torch

from basicsr.files.atomic_files import check_writable, write_atomically
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.text import printable
from basicsr.weights.interpolation import check_alike, interpolated
from basicsr.weights.recognise import Pretrained, load_pretrained, scales_text

_MOST = 1000  # files of a sweep


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        nargs="+",
        metavar="FILE",
        help="two or more networks that are equal in all but values",
    )
    add(
        "--alpha",
        required=True,
        nargs="+",
        metavar="NUMBER",
        help="share of the second of two networks, 0 to 1; FIRST:LAST:STEP for several files; of more networks the"
        " share of each, 1 together",
    )
    add("--output", required=True, metavar="PATH", help="file, .pth; for several files their folder")
    add("--param_key", metavar="KEY", help="which weights of each file (default: params_ema, else params)")
    return parser.parse_args(argv)


def shares_of(alphas: Sequence[str], count: int) -> list[tuple[float, ...]]:
    """The shares of `count` networks in each file to be written; raises OptionsError where `--alpha` is wrong."""
    if len(alphas) == 1 and ":" in alphas[0]:
        if count != 2:
            raise OptionsError(f"--alpha {alphas[0]} goes from one network to another, --model has {count}; give two")
        return [(float(1 - alpha), float(alpha)) for alpha in _sweep(alphas[0])]
    numbers = [_number(text) for text in alphas]
    if len(numbers) == 1 and count == 2:
        numbers = [1 - numbers[0], numbers[0]]
    if len(numbers) != count:
        raise OptionsError(f"--alpha has {len(numbers)} numbers, --model {count} files; give a share for each")
    total = sum(numbers, Decimal(0))
    if abs(total - 1) > Decimal("1e-6"):
        raise OptionsError(f"--alpha {' '.join(alphas)}: the shares are {total} together; they must be 1")
    return [tuple(map(float, numbers))]


def _number(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    if not (number.is_finite() and 0 <= number <= 1):
        raise OptionsError(f"--alpha {printable(text)}: give a number from 0 to 1, such as 0.8, or 0:1:0.1")
    return number


def _sweep(text: str) -> Iterator[Decimal]:
    """The numbers of FIRST:LAST:STEP, both ends included where the steps lead to them."""
    parts = text.split(":")
    if len(parts) != 3 or not all(parts):
        raise OptionsError(f"--alpha {printable(text)}: give FIRST:LAST:STEP, such as 0:1:0.1")
    first, last, step = map(_number, parts)
    if step <= 0 or last <= first or (last - first) / step > _MOST:
        raise OptionsError(
            f"--alpha {text}: LAST must be above FIRST and STEP above 0, with {_MOST} steps at most, such as 0:1:0.1"
        )
    for index in range(math.floor((last - first) / step) + 1):
        yield first + index * step


def targets(output: Path, models: Sequence[Path], shares: Sequence[tuple[float, ...]], sweep: bool) -> list[Path]:
    """The file for each of `shares`; raises OptionsError where one would replace a network that is read."""
    if sweep:
        if output.suffix:
            raise OptionsError(f"--output {output}: a sweep writes {len(shares)} files; give a folder")
        names = [re.sub(r"\.[^.]*\Z", "", model.name)[:80] for model in models]
        digits = max(len(f"{alpha:.10f}".rstrip("0").partition(".")[2]) for _, alpha in shares)
        files = [output / f"{names[0]}_{names[1]}_alpha{alpha:.{digits}f}.pth" for _, alpha in shares]
    else:
        if output.suffix != ".pth":
            raise OptionsError(f"--output {output}: give the name of a file that ends in .pth")
        files = [output]
    read = {model.resolve() for model in models}
    if replaced := [file for file in files if file.resolve() in read]:
        raise OptionsError(f"--output {replaced[0]} is one of the networks to be read; give another")
    return files


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Saves a file of weights, whole or not at all."""

    def save(file: BinaryIO) -> None:
        torch.save(content, file)

    write_atomically(path, save)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse(argv)
    models = [Path(path) for path in arguments.model]
    if len(models) < 2:
        raise OptionsError("--model has one file; give two or more")
    if len(set(models)) < len(models):
        raise OptionsError("--model names a file twice; give each once")
    shares = shares_of(arguments.alpha, len(models))
    sweep = ":" in arguments.alpha[0]
    files = targets(Path(arguments.output), models, shares, sweep)
    networks: dict[str, Pretrained] = {}
    for model in models:
        networks[str(model)] = network = load_pretrained(model, param_key=arguments.param_key)
        scales = scales_text(network.scales or (network.scale,))
        print(f"{model}: {network.architecture} {scales}{f', {network.weights}' if network.weights else ''}")
    check_alike(networks)
    folder = files[0].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make {folder}: {error.strerror}") from error
    check_writable(folder)
    for file, share in zip(files, shares, strict=True):
        write(file, interpolated(networks, share))
        print(
            f"wrote {file}: {' + '.join(f'{part:g} {model.name}' for part, model in zip(share, models, strict=True))}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
