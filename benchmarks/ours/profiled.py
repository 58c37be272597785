"""Trains what an options file describes under Python's profiler: `python profiled.py OPTIONS PROFILE`."""

from __future__ import annotations

import cProfile
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from basicsr.train import train_pipeline

if __name__ == "__main__":
    profile = cProfile.Profile()
    profile.runcall(train_pipeline, sys.argv[1])
    profile.dump_stats(sys.argv[2])
