from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from basicsr.utils import randomness


def draws() -> list[float]:
    return [random.random(), np.random.rand(), float(torch.rand(1))]


def test_sample_seeds_fit_int64_and_differ():
    seeds = [randomness.sample_seed(manual, position) for manual in range(20) for position in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert torch.tensor(seeds, dtype=torch.int64).min() >= 0
    assert 0 <= randomness.sample_seed(2**32, 10**12) < 2**63


def test_streams_depend_on_seed_and_purpose_alone():
    first = randomness.generator(3, "crop").random(4)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    np.testing.assert_array_equal(randomness.generator(3, "crop").random(4), first)
    assert not np.allclose(randomness.generator(3, "flip").random(4), first)
    assert not np.allclose(randomness.generator(4, "crop").random(4), first)


def test_streams_are_the_same_in_another_process():
    imports = "from basicsr.utils.randomness import generator, sample_seed"
    code = f"{imports}; print(sample_seed(5, 7), generator(3, 'crop').integers(10**9))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [
        str(randomness.sample_seed(5, 7)),
        str(randomness.generator(3, "crop").integers(10**9)),
    ]


def test_seed_everything_fixes_all_global_generators():
    with randomness.preserved_global_state():
        randomness.seed_everything(7, 1)
        first = draws()
        randomness.seed_everything(7, 1)
        assert draws() == first
        randomness.seed_everything(7, 2)
        assert all(a != b for a, b in zip(draws(), first, strict=True))


@pytest.mark.parametrize("context", [randomness.preserved_global_state, lambda: randomness.seeded_global_state(5)])
def test_global_state_comes_back_also_after_an_error(context):
    with randomness.preserved_global_state():
        randomness.seed_everything(1)
        expected = draws()
        randomness.seed_everything(1)
        with pytest.raises(KeyError), context():
            draws()
            raise KeyError
        assert draws() == expected


def test_a_seeded_block_repeats():
    with randomness.seeded_global_state(5):
        first = draws()
    with randomness.seeded_global_state(5):
        assert draws() == first
