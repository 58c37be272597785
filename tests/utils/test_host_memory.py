"""Freed memory is kept for the next step, or returned."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CODE = """
import resource, torch
from basicsr.utils.process_settings import keep_freed_memory

layer = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 1), torch.nn.ReLU(), torch.nn.Conv2d(32, 3, 1))
images = torch.rand(4, 3, 288, 288)

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        layer(images).mean().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(1)
anew = faults(2)
set_now = keep_freed_memory()
faults(2)
print(set_now, anew, faults(2))
"""


def run(code: str, **variables: str) -> list[str]:
    environment = {"PATH": "/usr/bin:/bin", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_pages_of_freed_tensors_are_not_mapped_anew():
    set_now, anew, kept = run(CODE)
    assert set_now == "True"
    assert int(anew) > 1000, "what this is about: each tensor's pages are touched for the first time"
    assert int(kept) < int(anew) / 10


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_malloc_that_the_user_has_tuned_is_left_alone():
    code = "from basicsr.utils.process_settings import keep_freed_memory; print(keep_freed_memory())"
    assert run(code, MALLOC_TRIM_THRESHOLD_="131072") == ["False"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_free_pages_before_a_block_in_use_are_returned():
    code = """
import resource
from basicsr.utils.process_settings import return_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

blocks = [bytearray(2**16) for _ in range(1000)]
for block in blocks:
    block[:] = bytes(2**16)
del blocks[:-1], block
before = resident()
return_freed_memory()
print(before - resident())
"""
    assert int(run(code)[0]) > 2**25
