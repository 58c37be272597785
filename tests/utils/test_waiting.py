"""How threads wait: set by the commands before PyTorch is there, and by nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from basicsr.engine.logs.run_log import _about_threads
from basicsr.utils.process_settings import shorten_spinning

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "basicsr/train.py",
    "basicsr/test.py",
    *(f"scripts/{name}.py" for name in ("upscale", "cache_teacher", "export", "loss_gradients", "compare_methods")),
    "scripts/model_info.py",
    "scripts/quickstart/steps.py",
)
TELLS = """
import os, signal
os.write(1, os.environ.get("GOMP_SPINCOUNT", "not set").encode())
os._exit(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.fixture(scope="module")
def in_the_place_of_torch(tmp_path_factory):
    """A folder of a module `torch` that says how threads would wait, and ends the process: by 0 if Ctrl+C is quiet."""
    folder = tmp_path_factory.mktemp("torch")
    (folder / "torch.py").write_text(TELLS)
    return folder


def policy(folder, *arguments: str, quiet: bool = True, **variables: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))), **variables}
    # Where the tests run in the background of a shell, Ctrl+C is ignored, and a process inherits that.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.returncode == (not quiet)
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_sets_it_before_torch_is_imported(in_the_place_of_torch, command):
    assert policy(in_the_place_of_torch, str(ROOT / command)) == "10000"


def test_what_the_user_has_set_stays_and_the_library_sets_nothing(in_the_place_of_torch):
    train = str(ROOT / "basicsr/train.py")
    assert policy(in_the_place_of_torch, train, GOMP_SPINCOUNT="7") == "7"
    assert policy(in_the_place_of_torch, train, OMP_WAIT_POLICY="ACTIVE") == "not set"
    assert policy(in_the_place_of_torch, "-c", "import basicsr.train", quiet=False) == "not set"
    environment = {"OMP_WAIT_POLICY": "active", "other": "1"}
    shorten_spinning(environment)
    assert environment == {"OMP_WAIT_POLICY": "active", "other": "1"}


def test_cores_that_torchrun_leaves_idle_are_told():
    launched = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}
    assert _about_threads(1, 8, launched).endswith("to use them all, export OMP_NUM_THREADS=4")
    assert not _about_threads(1, 3, launched)  # a core and a half for each
    assert not _about_threads(4, 8, launched)
    assert not _about_threads(1, 8, {"LOCAL_WORLD_SIZE": "2"})


@pytest.mark.long
def test_openmp_has_read_it():
    told = subprocess.run(
        [sys.executable, str(ROOT / "basicsr/train.py"), "--help"],
        env={**os.environ, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0 and "GOMP_SPINCOUNT = '10000'" in told.stderr
