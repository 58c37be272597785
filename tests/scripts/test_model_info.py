"""scripts/model_info.py --model as a command: what it says of a file, and of what is no file of weights."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
import yaml
from support import published

from basicsr.archs import build_network
from basicsr.config.yaml_files import load_yaml
from basicsr.engine.process.command import run_command

EDSR = {"type": "EDSR", "num_in_ch": 1, "num_out_ch": 1, "num_feat": 4, "num_block": 1, "upscale": 2, "rgb_mean": [0.5]}


@pytest.fixture
def model_info(capsys):
    """Runs the command; returns its exit code, and the items or the lines that it printed."""
    module = importlib.import_module("model_info")

    def run(*arguments):
        code = run_command(lambda: module.main([str(argument) for argument in arguments]))
        printed = capsys.readouterr()
        lines = (printed.out if code == 0 else printed.err).splitlines()
        return code, dict(line.split("  ", 1) for line in lines) if "--model" in arguments and code == 0 else lines

    yield run
    sys.modules.pop("model_info")


def test_what_our_training_saved_is_told_with_its_history(model_info, tmp_path):
    best = {"Set5": {"psnr": {"value": 32.123456789, "iteration": 5}}}
    training = {"name": "esc\x1b[31m", "iteration": 9, "losses": ["pix", "response"], "teacher": None, "best": best}
    state = build_network(EDSR).state_dict()
    content = {"params": state, "network": {**EDSR, "scale": 2}, "training": training}
    torch.save(content, tmp_path / "net.pth")
    code, items = model_info("--model", tmp_path / "net.pth", "--input", 1, 8, 6)
    told = {key: value.strip() for key, value in items.items()}
    assert code == 0
    assert {key: told[key] for key in ("architecture", "layout", "scale", "colours", "num_feat", "rgb_mean")} == {
        "architecture": "EDSR",
        "layout": "ours",
        "scale": "x2",
        "colours": "1 in, 1 out",
        "num_feat": "4",
        "rgb_mean": "0.5",
    }
    # 48 pixels: 9 to 4 channels, three times 4 to 4, 4 to 16; then 4 times as many pixels: 4 to 1.
    adds = 48 * 9 * (4 + 3 * 16 + 64) + 4 * 48 * 9 * 4
    assert told["multiply-adds (G) at 1x8x6"] == f"{adds / 1e9:.2f}"
    assert told["training name"] == "esc\\x1b[31m" and told["training losses"] == "pix, response"
    assert told["training best Set5 psnr value"] == "32.1235" and "remark" not in told


def test_a_published_file_is_told_with_what_was_taken_for_granted(model_info, tmp_path):
    torch.save(published.rcan(scale=3).state_dict(), tmp_path / "rcan.pt")
    code, items = model_info("--model", tmp_path / "rcan.pt")
    assert code == 0 and items["layout"].strip() == "RCAN's original"
    assert items["remark"].strip().endswith("not in the weights, taken as published: res_scale 1")


def test_what_is_no_file_of_weights_ends_in_one_line(model_info, tmp_path):
    (tmp_path / "page.pth").write_text("<html></html>")
    for file, reason in (("page.pth", "a web page"), ("nowhere.pth", "does not exist")):
        code, lines = model_info("--model", tmp_path / file)
        assert code == 4 and len(lines) == 1 and reason in lines[0]


def test_networks_of_options_that_are_recognised_are_in_the_table(model_info, tmp_path):
    torch.save(published.edsr(scale=2).state_dict(), tmp_path / "edsr.pt")
    dataset = {"type": "PairedImageDataset", "name": "d", "dataroot_gt": "gt", "io_backend": {"type": "disk"}}
    rows = {"published": {"path": str(tmp_path / "edsr.pt")}, "bicubic": {"type": "bicubic"}}
    options = {"name": "n", "scale": 2, "datasets": {"test": {**dataset, "dataroot_lq": "lq"}}, "networks": rows}
    (tmp_path / "options.yml").write_text(yaml.safe_dump(options))
    code, lines = model_info("-opt", tmp_path / "options.yml", "--input", 3, 16, 16)
    assert code == 0 and [line.split()[:2] for line in lines[1:]] == [["published", "EDSR"]]


def test_networks_of_a_test_at_several_scales_are_told_for_each(model_info):
    root = Path(__file__).resolve().parents[2]
    rows = [row for row in load_yaml(root / "options/test/swinir.yml").data()["networks"] if row != "bicubic"]
    assert {"teacher", "scratch", "mcadkd"} <= set(rows)
    code, lines = model_info("-opt", root / "options/test/swinir.yml", "--input", 3, 8, 8)
    assert code == 0
    assert [line.split()[:3] for line in lines[1:]] == [
        [f"x{scale}", name, "SwinIR"] for scale in (2, 3, 4) for name in rows
    ]


def test_names_of_modules_are_listed_as_patterns_of_training_name_them(model_info, tmp_path, capsys):
    torch.save(build_network(EDSR).state_dict(), tmp_path / "net.pth")
    assert sys.modules["model_info"].main(["--model", str(tmp_path / "net.pth"), "--names"]) == 0
    listed = [line.split() for line in capsys.readouterr().out.split("\n\n")[1].splitlines()]
    assert listed[:2] == [["conv_first", "Conv2d", "40"], ["body.0.conv1", "Conv2d", "148"]]
    assert model_info("-opt", "any.yml", "--names")[0] == 2
