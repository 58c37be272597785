"""The process of one candidate: loads it, and runs it when it is told to."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

from basicsr.utils.process_settings import shorten_spinning

if __name__ == "__main__":
    shorten_spinning()  # before PyTorch, which candidates may need, is imported

import numpy as np

from basicsr.latency.candidates import Candidate
from basicsr.latency.serving import serve
from basicsr.utils.errors import DataError


class Runs:
    """A loaded candidate and its image, random and the same for all."""

    def __init__(self, candidate: Mapping[str, Any]) -> None:
        chosen = Candidate.from_json(candidate)
        self._loaded = chosen.load()
        facts = self._loaded.facts
        if facts.size not in (None, chosen.size):
            allowed, asked = ("x".join(map(str, size)) for size in (facts.size, chosen.size))
            raise DataError(f"{chosen.label} takes images of {allowed} only, asked was {asked}")
        shape = (1, facts.channels, *chosen.size)
        self._image = np.random.default_rng(0).random(shape, dtype=np.float32)
        made = self._loaded(self._image).shape
        expected = (1, made[1], *(side * facts.scale for side in chosen.size))
        if tuple(made) != expected:
            raise DataError(f"{chosen.label} makes {tuple(made)} of {shape}: it is not of scale {facts.scale}")

    def facts(self) -> dict[str, Any]:
        """What is known of it once it is loaded."""
        facts = self._loaded.facts
        return {"scale": facts.scale, "channels": facts.channels, "precision": self._loaded.computes_in}

    def run(self, passes: int) -> dict[str, float]:
        """Seconds of a pass by the clock, and of the processor."""
        clock, processor = time.perf_counter(), time.process_time()
        for _ in range(passes):
            self._loaded(self._image)
        return {
            "seconds": (time.perf_counter() - clock) / passes,
            "cpu_seconds": (time.process_time() - processor) / passes,
        }


if __name__ == "__main__":
    serve({"candidate": Runs})
