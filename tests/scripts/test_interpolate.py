"""scripts/interpolate.py as a command: sums of weights, what the files say, what is no pair."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from support import published

from basicsr.archs import build_network
from basicsr.engine.process.command import run_command
from basicsr.weights.recognise import load_pretrained

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2, "img_range": 1.0}


@pytest.fixture
def interpolate(capsys):
    """Runs the command; returns its exit code and the lines that it printed."""
    module = importlib.import_module("interpolate")

    def run(*arguments):
        code = run_command(lambda: module.main([str(argument) for argument in arguments]))
        printed = capsys.readouterr()
        return code, (printed.out if code == 0 else printed.err).splitlines()

    yield run
    sys.modules.pop("interpolate")


def saved(path: Path, seed: int, **changes) -> Path:
    torch.manual_seed(seed)
    block = {**EDSR, **changes}
    record = {"network": {**block, "scale": 2}, "training": {"name": path.stem, "iteration": seed}}
    torch.save({"params": build_network(block).state_dict(), **record}, path)
    return path


@pytest.fixture
def pair(tmp_path):
    return [saved(tmp_path / f"{name}.pth", seed) for seed, name in enumerate("ab", start=1)]


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_alpha_is_the_share_of_the_second_network(interpolate, pair, tmp_path):
    code, lines = interpolate("--model", *pair, "--alpha", 0.8, "--output", tmp_path / "new/mixed.pth")
    assert code == 0 and lines[-1].endswith("mixed.pth: 0.2 a.pth + 0.8 b.pth")
    first, second, mixed = (read(path) for path in (*pair, tmp_path / "new/mixed.pth"))
    for key, value in mixed["params"].items():
        expected = 0.2 * first["params"][key].double() + 0.8 * second["params"][key].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-7, atol=1e-8)
    assert mixed["network"] == {**EDSR, "scale": 2}
    assert mixed["training"]["interpolated"][1] == {
        "file": str(pair[1]),
        "share": 0.8,
        "weights": "params",
        "name": "b",
        "iteration": 2,
    }
    assert load_pretrained(tmp_path / "new/mixed.pth").block == EDSR


def test_a_sweep_ends_with_the_networks_themselves(interpolate, pair, tmp_path):
    code, _ = interpolate("--model", *pair, "--alpha", "0:1:0.1", "--output", tmp_path / "sweep")
    files = sorted((tmp_path / "sweep").iterdir())
    assert code == 0 and [file.name for file in files] == [f"a_b_alpha{i / 10:.1f}.pth" for i in range(11)]
    for mixed, given in ((files[0], pair[0]), (files[-1], pair[1])):
        ours, theirs = read(mixed)["params"], read(given)["params"]
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_three_networks_have_a_share_each(interpolate, pair, tmp_path):
    third = saved(tmp_path / "c.pth", 3)
    arguments = "--model", *pair, third, "--output", tmp_path / "d.pth", "--alpha"
    assert interpolate(*arguments, 0.5, 0.3, 0.2)[0] == 0
    key = "body.0.conv1.weight"
    a, b, c = (read(path)["params"][key] for path in (*pair, third))
    torch.testing.assert_close(read(tmp_path / "d.pth")["params"][key], 0.5 * a + 0.3 * b + 0.2 * c)
    code, lines = interpolate(*arguments, 0.5, 0.3, 0.3)
    assert (code, len(lines)) == (2, 1) and "the shares are 1.1 together; they must be 1" in lines[0]


def test_networks_for_several_scales_stay_so(interpolate, tmp_path):
    files = [tmp_path / "1.pth", tmp_path / "2.pth"]
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        block = {"type": "CARN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "upscale": 2, "scales": [2, 3, 4]}
        torch.save(build_network(block).state_dict(), file)
    code, lines = interpolate("--model", *files, "--alpha", 0.5, "--output", tmp_path / "mixed.pth")
    given = load_pretrained(files[0])
    assert code == 0 and lines[0].endswith("CARN x2, x3, x4") and given.scales == (2, 3, 4)
    assert [load_pretrained(tmp_path / "mixed.pth", scale=scale).scale for scale in given.scales] == [2, 3, 4]


def test_networks_of_spandrels_are_recognised_again(interpolate, tmp_path):
    files = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        files.append(tmp_path / f"{seed}.pth")
        torch.save(published.spandrel_architecture("PLKSR").RealPLKSR(dim=8, n_blocks=2).state_dict(), files[-1])
    assert interpolate("--model", *files, "--alpha", 0.5, "--output", tmp_path / "mixed.pth")[0] == 0
    mixed, *given = (load_pretrained(path) for path in (tmp_path / "mixed.pth", *files))
    assert mixed.layout == "spandrel"
    first, second, middle = (network.network.state_dict() for network in (*given, mixed))
    key = max(first, key=lambda name: first[name].numel())
    torch.testing.assert_close(middle[key], (first[key] + second[key]) / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_feat": 8}, "is of num_feat 4, {} of num_feat 8"),
        ({"img_range": 255.0}, "is of img_range 1.0, {} of img_range 255.0"),
        ({"type": "MSRResNet", "img_range": None}, "is EDSR, {} MSRResNet"),
    ],
)
def test_networks_that_differ_are_refused_in_one_line(interpolate, pair, tmp_path, changes, message):
    block = {key: value for key, value in {**EDSR, **changes}.items() if value is not None}
    other = tmp_path / "other.pth"
    torch.save({"params": build_network(block).state_dict(), "network": {**block, "scale": 2}}, other)
    code, lines = interpolate("--model", pair[0], other, "--alpha", 0.5, "--output", tmp_path / "mixed.pth")
    assert (code, len(lines)) == (4, 1)
    assert f"{pair[0]} {message.format(other)}: only networks that are equal but for the values" in lines[0]
    assert not (tmp_path / "mixed.pth").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--alpha", 1.5, "--output", "m.pth"), "--alpha 1.5: give a number from 0 to 1"),
        (("--alpha", "nan", "--output", "m.pth"), "--alpha nan: give a number from 0 to 1"),
        (("--alpha", "0:1", "--output", "m"), "--alpha 0:1: give FIRST:LAST:STEP"),
        (("--alpha", "0:1:1e-9", "--output", "m"), "with 1000 steps at most"),
        (("--alpha", "0:1:0.5", "--output", "m.pth"), "a sweep writes 3 files; give a folder"),
        (("--alpha", "0.5", "--output", "m"), "give the name of a file that ends in .pth"),
        (("--alpha", "0.5", "--output", "a.pth"), "is one of the networks to be read"),
        (("--alpha", "0.5", "0.2", "0.3", "--output", "m.pth"), "--alpha has 3 numbers, --model 2 files"),
    ],
)
def test_slips_are_one_line_and_nothing_is_written(interpolate, pair, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, lines = interpolate("--model", "a.pth", "b.pth", *arguments)
    assert (code, len(lines)) == (2, 1) and message in lines[0]
    assert sorted(tmp_path.iterdir()) == before
    assert interpolate("--model", "a.pth", "--alpha", 1, "--output", "m.pth")[0] == 2
