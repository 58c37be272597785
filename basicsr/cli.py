"""The installed commands `mcadkd-train` and `mcadkd-test`: train.py and test.py, run as programs."""

from __future__ import annotations

import runpy


def train() -> None:
    """As `python basicsr/train.py`."""
    runpy.run_module("basicsr.train", run_name="__main__", alter_sys=True)


def test() -> None:
    """As `python basicsr/test.py`."""
    runpy.run_module("basicsr.test", run_name="__main__", alter_sys=True)
