"""What happens when memory runs out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from basicsr.inference.runner import ImageRunner
from basicsr.utils.errors import MachineError, is_out_of_memory

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]

LIMITED = """
import resource
import torch
from torch import nn
from basicsr.inference.runner import ImageRunner
from basicsr.utils.errors import MachineError

def allow(megabytes):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))

torch.set_num_threads(1)
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 3, 3, padding=1)).eval()
lq = torch.rand(1, 3, 700, 900)
expected = ImageRunner(network, 1, torch.device("cpu"))(lq)
for tile in (64, 450):  # oneDNN makes its code for each size before the limit
    ImageRunner(network, 1, torch.device("cpu"), tile=tile)(lq)
larger = lq.repeat(1, 1, 4, 4)  # its result alone is more than the heap keeps of what was freed
allow(2)
try:
    ImageRunner(network, 1, torch.device("cpu"), report=lambda line: None)(larger)
except MachineError as error:
    print(repr(str(error)))
allow(120)
result = ImageRunner(network, 1, torch.device("cpu"), report=print)(lq)
print("difference below 1e-6:", bool((result - expected).abs().max() < 1e-6))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of a process's memory, as Linux has them")
def test_a_process_that_may_take_no_more_memory_goes_on_with_smaller_tiles_or_says_so_in_one_line():
    """An image whose features take 154 MiB where 120 MiB are free, and before that a larger one where 2 MiB are."""
    process = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert process.returncode == 0, process.stderr
    refusal, *lines = process.stdout.splitlines()
    assert refusal.startswith("'") and "\\n" not in refusal
    assert lines[0] == "out of memory with the whole image: going on with tiles of 450"
    assert lines[-1] == "difference below 1e-6: True"


class Small(nn.Module):
    """Repeats pixels, on a device that holds `capacity` of them."""

    def __init__(self, capacity: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.capacity, self.error = capacity, error
        self.sizes: list[tuple[int, int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append((x.shape[-2], x.shape[-1]))
        if x.shape[-2] * x.shape[-1] > self.capacity:
            raise self.error("CUDA out of memory. Tried to allocate 20.00 GiB")
        return nn.functional.interpolate(x, scale_factor=2)


def image(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_tiles_are_halved_until_they_fit_and_stay_so(error):
    lines: list[str] = []
    network, lq = Small(64 * 64, error), image(200, 300)
    runner = ImageRunner(network, 2, CPU, tile=256, tile_overlap=0, report=lines.append)
    assert torch.equal(runner(lq), network_free(lq))
    assert lines == [
        "out of memory with tiles of 256: going on with tiles of 128",
        "out of memory with tiles of 128: going on with tiles of 64",
    ]
    network.sizes.clear()
    runner(lq)
    assert max(height * width for height, width in network.sizes) <= 64 * 64
    assert len(lines) == 2


def test_what_is_done_is_not_done_again():
    class Shrinking(Small):
        """Holds less from the fourth run on."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.capacity = 64 * 64 if len(self.sizes) < 3 else 32 * 32
            return super().forward(x)

    network, lq = Shrinking(0), image(128, 128)
    lines: list[str] = []
    runner = ImageRunner(network, 2, CPU, tile=64, tile_overlap=0, report=lines.append)
    assert torch.equal(runner(lq), network_free(lq))
    assert network.sizes == [(64, 64)] * 4 + [(32, 32)] * 4
    assert lines == ["out of memory with tiles of 64: going on with tiles of 32"]


def test_averages_over_the_image_survive_smaller_tiles():
    class Gated(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * x.mean((2, 3), keepdim=True))

    lq = image(100, 90)
    tiled = ImageRunner(Gated(48 * 48), 2, CPU, tile=64, tile_overlap=0, report=lambda line: None)(lq)
    assert (tiled - network_free(lq * lq.mean((2, 3), keepdim=True))).abs().max() < 1e-6


@pytest.mark.parametrize("tile", [None, 16, 40])
def test_the_smallest_tile_is_the_end(tile):
    with pytest.raises(MachineError) as caught:
        ImageRunner(Small(0), 2, CPU, tile=tile, tile_overlap=0, report=lambda line: None)(image(50, 60))
    assert str(caught.value).startswith(f"out of memory on cpu with tiles of {16 if tile == 16 else 32}, and smaller")
    assert "\n" not in str(caught.value)


def test_other_errors_are_no_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] ... DefaultCPUAllocator: can't allocate memory")
    )


def network_free(lq: torch.Tensor) -> torch.Tensor:
    return nn.functional.interpolate(lq, scale_factor=2)
