"""Random streams that depend on the manual seed and a sample's position only: not on processes, ranks or history."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def sample_seed(manual_seed: int, position: int) -> int:
    """The 63-bit seed (it fits an int64 tensor) of the sample at `position` among all that all ranks draw, from 0."""
    return _first_63_bits(np.random.SeedSequence([manual_seed, position]))


def generator(seed: int, purpose: str) -> np.random.Generator:
    """A generator of its own for each pair of seed and purpose; the same in every process."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, purpose)))


def derived_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for each pair of seed and purpose, for generators other than numpy's."""
    return _first_63_bits(_sequence(seed, purpose))


def seed_of_text(text: str) -> int:
    """The 63-bit seed of a text, such as an image's name."""
    return derived_seed(0, text)


def seed_everything(seed: int, *keys: int) -> None:
    """Seeds Python's, numpy's and torch's global generators from `seed` and keys such as a rank."""
    torch.manual_seed(_seed_cpu(seed, *keys))


@contextmanager
def preserved_global_state() -> Iterator[None]:
    """Puts Python's, numpy's and torch's global generators (CUDA's if in use) back as they were."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def seeded_global_state(seed: int) -> Iterator[None]:
    """Seeds the CPU's global generators for a block; CUDA's are left alone, as seeding would queue calls for them."""
    with preserved_global_state():
        _seed_cpu(seed)
        yield


def _seed_cpu(seed: int, *keys: int) -> int:
    """Seeds the global generators of the CPU; returns torch's seed."""
    words = np.random.SeedSequence([seed, *keys]).generate_state(4, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(words[1:3].view(np.uint32))
    for_torch = int(words[3] >> np.uint64(1))
    torch.default_generator.manual_seed(for_torch)
    return for_torch


def _sequence(seed: int, purpose: str) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode("utf-8"))])


def _first_63_bits(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
