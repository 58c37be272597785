"""Making a teacher's cache: what is stored, going on after a break, and what is refused."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.caching import at_forward, from_cache, make, make_and_die, with_teacher
from support.training import changed, start

from basicsr.archs import build_network
from basicsr.config.load import load_options
from basicsr.engine import teacher_cache as cache_making
from basicsr.engine.process.command import run_command
from basicsr.engine.teacher_cache import CacheSettings, make_cache
from basicsr.inference.runner import ImageRunner
from basicsr.utils import pass_times
from basicsr.utils.errors import DataError, OptionsError, Preempted

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def options(mcadkd, tmp_path):
    return with_teacher(mcadkd, tmp_path)


def teacher_of(options: dict) -> torch.nn.Module:
    network = build_network(options["network_t"])
    network.load_state_dict(torch.load(options["path"]["pretrain_network_t"], weights_only=True)["params"])
    return network.eval()


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "cache.json").read_text())


@pytest.mark.parametrize("self_ensemble", [False, True])
def test_outputs_are_the_runners_within_half_a_step(options, self_ensemble):
    made = make(options, self_ensemble=self_ensemble)
    train = options["datasets"]["train"]
    digest = hashlib.sha256(Path(options["path"]["pretrain_network_t"]).read_bytes()).hexdigest()
    name = f"HR_EDSR_x2_{digest[:8]}{'_self_ensemble' if self_ensemble else ''}"
    assert made.folder == Path(train["dataroot_gt"]).parent / name
    runner = ImageRunner(teacher_of(options), 2, torch.device("cpu"), self_ensemble=self_ensemble)
    manifest = manifest_of(made.folder)
    assert (made.images, made.new, len(manifest["images"]), manifest["complete"]) == (7, 7, 7, True)
    assert manifest["key"]["teacher"] == digest and manifest["key"]["self_ensemble"] is self_ensemble
    for image in manifest["images"]:
        lq = Path(train["dataroot_lq"]) / f"{image['name']}x2.png"
        stored = made.folder / f"{image['name']}.ppm"
        assert image["lq"] == hashlib.sha256(lq.read_bytes()).hexdigest()
        assert image["sha256"] == hashlib.sha256(stored.read_bytes()).hexdigest()
        assert image["bytes"] == stored.stat().st_size == 48 * 48 * 6 + len(b"P6\n48 48\n65535\n")
        rgb = cv2.imread(str(lq))[..., ::-1].astype(np.float32) / 255
        expected = runner(torch.from_numpy(rgb.transpose(2, 0, 1).copy())[None])[0].double().clamp(-0.5, 1.5)
        codes = cv2.imread(str(stored), cv2.IMREAD_UNCHANGED)[..., ::-1].astype(np.float64)
        assert np.abs(codes.transpose(2, 0, 1) / 65535 * 2 - 0.5 - expected.numpy()).max() <= 1 / 65535 + 1e-9


def test_what_was_broken_off_goes_on_and_ends_the_same(options, tmp_path):
    whole = make(options, tmp_path / "whole").folder
    folder = tmp_path / "broken"
    killed = start(make_and_die, options, str(folder), 3)  # by SIGKILL, while the third image is made
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    (folder / ".img000.ppm.999999999.tmp").write_bytes(b"left behind")
    assert not manifest_of(folder)["complete"]
    message = "stopped: . of 7 outputs are there; the same command goes on"
    with at_forward(2, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Preempted, match=message):
        make(options, folder)
    done = sorted(folder.glob("*.ppm"))
    assert 3 <= len(done) < 7
    done[0].write_bytes(done[0].read_bytes()[:-1])  # not one that a break leaves, but it is seen
    made = make(options, folder)
    assert made.new == 7 - len(done) + 1
    names = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == names
    (folder / "img004.ppm").unlink()
    assert make(options, folder).new == 1
    assert make(options, folder).new == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == names


def test_a_folder_of_something_else_is_refused_in_a_line(options, tmp_path):
    folder = make(options, tmp_path / "cache").folder

    def refused(message: str, given: dict = options, at: Path = folder, **how) -> None:
        with pytest.raises(DataError, match=message) as caught:
            make(given, at, **how)
        assert "\n" not in str(caught.value) and "--output" in str(caught.value)

    refused("is another cache: self_ensemble False instead of True; remove it", self_ensemble=True)
    refused("is another cache: precision none instead of bf16", amp="bf16")
    refused("SHA-256 of the teacher's weights .* instead of", with_teacher(options, tmp_path, seed=6))
    lq = Path(options["datasets"]["train"]["dataroot_lq"]) / "img002x2.png"
    cv2.imwrite(str(lq), 255 - cv2.imread(str(lq)))
    refused("the LR image of img002 is another than it was then;")
    refused("is not empty and no teacher's cache", at=lq.parent)


def test_images_that_cannot_be_used_are_told_before_the_first_is_made(options, tmp_path):
    lq = Path(options["datasets"]["train"]["dataroot_lq"]) / "img002x2.png"
    lq.write_bytes(lq.read_bytes()[:50])
    with pytest.raises(DataError, match="1 of 7 images of dataset train cannot be used"):
        make(options, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    without = changed(options, path__pretrain_network_t=None, path__allow_random_teacher=True)
    lq.write_bytes((lq.parent / "img001x2.png").read_bytes())
    with pytest.raises(OptionsError, match="pretrain_network_t is required: a cache is of a trained teacher"):
        make(without, tmp_path / "cache")


def test_the_command_makes_the_folder_that_the_options_name(options, tmp_path, monkeypatch, capfd):
    script = importlib.import_module("cache_teacher")
    file = tmp_path / "options.json"  # which is YAML as well
    file.write_text(json.dumps(from_cache(options, tmp_path / "named", teacher=True)))
    assert run_command(lambda: script.main(["-opt", str(file), "--device", "cpu", "--tile", "16"])) == 0
    out = capfd.readouterr().out
    assert "7 outputs, all made now, " in out and "clipped to [-0.5, 1.5]: none" in out
    assert manifest_of(tmp_path / "named")["complete"]
    untrained = ["path:pretrain_network_t=~", "path:allow_random_teacher=true"]
    for arguments, code, message in (
        (["--self_ensemble"], 3, "is another cache: self_ensemble False instead of True"),
        (["--tile", "4"], 2, "--tile 4: give 8 or more"),
        (["--force_yml", *untrained], 2, "a cache is of a trained teacher"),
    ):
        assert run_command(lambda given=arguments: script.main(["-opt", str(file), *given])) == code
        errors = capfd.readouterr().err
        assert errors.startswith("error: ") and errors.count("\n") == 1, errors
        assert message in errors
    sys.modules.pop("cache_teacher")


def test_auto_takes_what_is_faster_and_goes_on_with_the_precision_that_a_cache_has(options, tmp_path, monkeypatch):
    said: list[str] = []

    def made(precision: str, folder: Path | None = None):
        monkeypatch.setattr(cache_making, "faster_precision", lambda *given: (precision, "by given times"))
        how = CacheSettings(torch.device("cpu"), amp="auto")
        return make_cache(load_options(options, training=True), how, folder, said.append)

    first = made("bf16")
    assert (first.key.precision, first.new) == ("bf16", 7) and first.folder.name.endswith("_bf16")
    assert "amp auto: bf16; by given times" in said
    again = made("none")  # another machine, or another day
    assert (again.key, again.new, again.folder) == (first.key, 0, first.folder)
    assert "amp auto: bf16, as the cache has it" in said
    assert made("none", tmp_path / "mine").key.precision == "none"
    assert made("bf16", tmp_path / "mine").new == 0


def test_a_slow_precision_is_warned_of_with_its_factor(options, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(pass_times, "times_of_network", lambda *given: pass_times.PassTimes((1.0,), (7.0,)))
    monkeypatch.setattr(pass_times, "has_units", lambda *given: False)
    how = CacheSettings(torch.device("cpu"), amp="bf16")
    make_cache(load_options(options, training=True), how, None, said.append)
    (warning,) = [line for line in said if line.startswith("warning: ")]
    assert warning.startswith("warning: --amp bf16 is slow here: it takes 7.00 times as long as float32")
