from __future__ import annotations

import re
import subprocess
import sys

import pytest

import basicsr.utils
from basicsr.utils import get_time_str, scandir, set_random_seed, sizeof_fmt
from basicsr.utils.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.PNG", "c.txt", ".hidden.png", "sub/d.png", ".git/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


def test_scandir_is_sorted_and_leaves_hidden_files_out(folder):
    assert list(scandir(folder)) == ["a.PNG", "b.png", "c.txt"]
    assert list(scandir(str(folder), suffix=".png")) == ["a.PNG", "b.png"]
    assert list(scandir(folder, suffix=(".txt", ".png"), recursive=True)) == [
        "a.PNG",
        "b.png",
        "c.txt",
        "sub/d.png",
    ]
    assert list(scandir(folder, ".txt", full_path=True)) == [str(folder / "c.txt")]


def test_scandir_names_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match="nowhere: No such file"):
        list(scandir(tmp_path / "nowhere"))


def test_set_random_seed_seeds_each_library_with_the_seed_itself():
    import random

    import numpy as np
    import torch

    from basicsr.utils.randomness import preserved_global_state

    with preserved_global_state():
        set_random_seed(3)
        assert random.random() == random.Random(3).random()
        assert np.random.rand() == np.random.RandomState(3).rand()
        assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(3)))


def test_sizes_and_times_are_readable():
    assert (sizeof_fmt(10), sizeof_fmt(1536), sizeof_fmt(3 * 1024**3)) == ("10.0 B", "1.5 KB", "3.0 GB")
    assert re.fullmatch(r"\d{8}_\d{6}", get_time_str())


def test_every_name_that_utils_offers_is_there():
    for name in basicsr.utils.__all__:
        assert callable(getattr(basicsr.utils, name))
    assert set(basicsr.utils.__all__) <= set(dir(basicsr.utils))


def test_importing_utils_and_data_imports_no_heavy_package():
    code = "import sys, basicsr.utils, basicsr.data; print({'torch', 'cv2', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
