"""scripts/upscale.py on one picture, from its file to the result's."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import upscale
from upscaling_backends import choose

from basicsr.inference.pictures import DEFAULT_QUALITY
from basicsr.inference.upscaling import Upscaler, upscale_file


class Upscaling:
    """The command, prepared once and run again and again.

    Args:
        model: checkpoint or exported file.
        picture: what is upscaled.
        output: the result's file.
        backend: as of --backend.
        threads: of the runtime.
    """

    def __init__(self, model: str, picture: str, output: str, backend: str, threads: int) -> None:
        torch.set_num_threads(threads)
        fixed = ["--output", str(Path(output).parent), "--device", "cpu", "--backend", backend]
        arguments = upscale.parse([picture, "--model", model, *fixed])
        loaded = upscale.load(arguments)
        backend_chosen = choose(loaded, [picture], arguments, whole=False, say=lambda line: None)
        runner = upscale.build_runner(backend_chosen, loaded.scale, arguments, tqdm(disable=True))
        self._picture, self._output, self._told = picture, Path(output), backend_chosen.told
        self._upscaler = Upscaler(runner.to_array, loaded.scale, loaded.channels)

    def told(self) -> str:
        """What runs the network."""
        return self._told

    def run(self) -> float:
        """Seconds for the picture: decoded, upscaled, encoded, written."""
        started = time.perf_counter()
        upscale_file(self._picture, self._output, self._upscaler, "png", DEFAULT_QUALITY)
        return time.perf_counter() - started
