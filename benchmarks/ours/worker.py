"""Our side's process: parts of this package, prepared and run as requests on standard input say."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from basicsr.utils.process_settings import shorten_spinning

if __name__ == "__main__":
    shorten_spinning()  # as train.py does, before PyTorch is imported

from basicsr.latency.serving import serve
from benchmarks.ours.data import Data
from benchmarks.ours.indexing import Indexing
from benchmarks.ours.metrics import Metrics, PlainMetrics
from benchmarks.ours.precisions import Precisions
from benchmarks.ours.step import Step
from benchmarks.ours.upscaling import Upscaling

if __name__ == "__main__":
    serve(
        {
            "step": Step,
            "precisions": Precisions,
            "data": Data,
            "indexing": Indexing,
            "upscaling": Upscaling,
            "metrics": Metrics,
            "plain_metrics": PlainMetrics,
        }
    )
