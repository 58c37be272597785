"""test.py as a whole: several networks, datasets and scales in one run, from options to the report."""

from __future__ import annotations

import csv
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import basicsr
from basicsr.archs import build_network
from basicsr.config.load import load_options
from basicsr.config.yaml_files import dump_yaml, load_yaml
from basicsr.files.images import tensor2img
from basicsr.metrics import calculate_psnr
from basicsr.test import test_pipeline as run_test
from basicsr.utils import pass_times
from basicsr.utils.errors import CheckpointError, DataError, OptionsError
from basicsr.utils.matlab_functions import imresize

ROOT = Path(__file__).resolve().parents[1]
SCALES = (2, 3)


def network(scale):
    return {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": scale}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of three images at x2 and x3, and the weights of two networks for each scale."""
    folder = tmp_path_factory.mktemp("testing")
    generator = np.random.default_rng(0)
    for index in range(3):
        small = generator.integers(0, 256, (9, 8, 3), dtype=np.uint8)
        hr = cv2.resize(small, (48, 54), interpolation=cv2.INTER_CUBIC)
        (folder / "HR").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"HR/img{index}.png"), hr)
        for scale in SCALES:
            (folder / f"X{scale}").mkdir(exist_ok=True)
            lr = np.clip(imresize(hr / 255, 1 / scale) * 255, 0, 255).round().astype(np.uint8)
            cv2.imwrite(str(folder / f"X{scale}/img{index}x{scale}.png"), lr)
    for scale in SCALES:
        for name, seed in (("scratch", 0), ("mcadkd", 1)):
            torch.manual_seed(seed)
            torch.save({"params": build_network(network(scale)).state_dict()}, folder / f"{name}_x{scale}.pth")
    return folder


def make_options(folder):
    dataset = {
        "type": "PairedImageDataset",
        "filename_tmpl": "{}x{scale}",
        "io_backend": {"type": "disk"},
        "dataroot_gt": f"{folder}/HR",
        "dataroot_lq": f"{folder}/X{{scale}}",
    }
    rows = {
        name: {"network": network("{scale}"), "path": f"{folder}/{name}_x{{scale}}.pth"}
        for name in ("scratch", "mcadkd", "teacher")
    }
    return {
        "name": "both",
        "scale": list(SCALES),
        "num_gpu": 0,
        "skip_missing": True,
        "datasets": {
            "test_1": {**dataset, "name": "Set5"},
            "test_2": {**dataset, "name": "Urban100", "dataroot_gt": f"{folder}/nowhere"},
        },
        "networks": {"bicubic": {"type": "bicubic"}, **rows},
        "val": {
            "metrics": {
                "psnr": {"type": "calculate_psnr", "test_y_channel": True},
                "ssim": {"type": "calculate_ssim", "test_y_channel": True},
            },
        },
        "report": {"input": [3, 16, 16], "published": "EDSR", "crops": 1},
    }


@pytest.fixture
def options(folder):
    return make_options(folder)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """What one run at both scales leaves: its results, its folder and its log."""
    root = tmp_path_factory.mktemp("run")
    results = run_test(make_options(folder), root=root)
    output = root / "results/both"
    return results, output, next(output.glob("test_both_*.log")).read_text()


def test_every_network_has_figures_of_every_dataset_at_every_scale(finished):
    results, _, _ = finished
    assert [scale.scale for scale in results.scales] == [2, 3]
    for scale in results.scales:
        assert [row.name for row in scale.rows] == ["bicubic", "scratch", "mcadkd"]
        for row in scale.rows:
            assert list(row.evaluations) == ["Set5"]
            assert row.evaluations["Set5"].values.shape == (3, 2)
            assert (row.multiply_adds is not None and row.latency.low > 0) is (row.name != "bicubic")
        assert scale.rows[1].latency == scale.rows[2].latency, "networks of one architecture share it"


def test_the_border_cut_off_is_the_scale_where_none_is_given(finished, folder):
    results, _, _ = finished
    for scale in results.scales:
        lr = cv2.imread(str(folder / f"X{scale.scale}/img0x{scale.scale}.png"))
        hr = cv2.imread(str(folder / "HR/img0.png"))
        bicubic = tensor2img(
            imresize(torch.from_numpy(lr.transpose(2, 0, 1) / 255).float(), scale.scale), rgb2bgr=False
        )
        expected = calculate_psnr(bicubic, hr, crop_border=scale.scale, test_y_channel=True)
        assert scale.rows[0].evaluations["Set5"].values[0, 0] == pytest.approx(expected, abs=1e-6)


def test_what_was_left_out_is_in_the_log_and_in_the_tables(finished):
    _, output, log = finished
    summary = (output / "summary.md").read_text()
    for scale in SCALES:
        assert f"x{scale}: left out Urban100: there is no folder" in log
        assert f"x{scale}: left out teacher: there is no file" in log
    assert "x2, x3: left out Urban100: there is no folder" in summary
    assert all(f"x{scale}: left out teacher: there is no file" in summary for scale in SCALES)


def test_where_the_figures_come_from_is_kept(finished, folder):
    _, output, log = finished
    assert load_options(output / "both_x3.yml", training=False).scale == 3
    summary, report = (output / "summary.md").read_text(), (output / "report.html").read_text()
    for scale in SCALES:
        for name in ("scratch", "mcadkd"):
            file = folder / f"{name}_x{scale}.pth"
            line = f"x{scale} {name}: {file}, SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}"
            assert line in summary.replace("\\", "") and line in report
    psnr = finished[0].scales[1].rows[2].evaluations["Set5"].means()["psnr"]
    assert f"x3 mcadkd, Set5 (3 images): PSNR {psnr:.2f}, SSIM 0." in log
    assert f"basicsr {basicsr.__version__}" in report


def test_images_are_saved_where_the_report_shows_them_unless_told_otherwise(options, tmp_path):
    options |= {"scale": 2, "networks": {"bicubic": {"type": "bicubic"}}}
    quiet = {"html": False, "plots": False, "speed": False}
    for report, said, saved in (
        (quiet, None, False),
        ({**quiet, "html": True}, None, True),
        ({**quiet, "html": True, "images": 0}, None, False),
        ({**quiet, "plots": True}, None, True),
        ({**quiet, "html": True}, False, False),
        (quiet, True, True),
    ):
        options |= {"report": report, "val": {**options["val"], "save_img": said}, "name": f"n{saved}"}
        loaded = load_options(options, training=False)
        assert loaded.saves_images is saved
    options["report"]["regions"] = [{"dataset": "Set5", "image": "img0", "x": 0, "y": 0}]
    options["val"]["save_img"] = False
    with pytest.raises(OptionsError, match=r"report\.regions: are of images that are not saved"):
        run_test(options, root=tmp_path)


def test_tables_pictures_and_report_are_written(finished):
    results, output, _ = finished
    assert (output / "report.html").stat().st_size > 10_000
    assert r"\toprule" in (output / "tables.tex").read_text()
    for scale in SCALES:
        assert (output / f"plots/psnr_Set5_x{scale}.svg").is_file()
        assert cv2.imread(str(output / f"comparison_x{scale}.png")) is not None
        for row in ("bicubic", "scratch", "mcadkd"):
            images = sorted((output / f"visualization/x{scale}/{row}/Set5").glob("*.png"))
            assert [image.name for image in images] == [f"img{index}x{scale}_both.png" for index in range(3)]
    with open(output / "metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(SCALES) * 3 * 3 * 3  # scales, networks, images; psnr, ssim, seconds
    value = next(line for line in lines if line["scale"] == "3" and line["network"] == "mcadkd")
    assert float(value["value"]) == pytest.approx(results.scales[1].rows[2].evaluations["Set5"].values[0, 0], abs=1e-6)


def test_one_scale_keeps_the_folders_of_old(options, tmp_path):
    options["scale"] = 2
    options["report"] = {"html": False, "plots": False, "speed": False}
    options["val"]["save_img"] = True
    run_test(options, root=tmp_path)
    output = tmp_path / "results/both"
    assert len(list((output / "visualization/mcadkd/Set5").glob("*.png"))) == 3
    assert not (output / "report.html").exists() and not (output / "plots").exists()


def test_a_network_is_recognised_from_its_weights(options, finished, tmp_path):
    for name in ("scratch", "mcadkd"):
        del options["networks"][name]["network"]
    options["report"] = {"html": False, "plots": False, "speed": False}
    results = run_test(options, root=tmp_path)
    for scale, expected in zip(results.scales, finished[0].scales, strict=True):
        for row, same in zip(scale.rows, expected.rows, strict=True):
            assert np.array_equal(row.evaluations["Set5"].values, same.evaluations["Set5"].values)


def test_weights_of_another_scale_are_refused_by_name(options, folder, tmp_path):
    options["networks"]["mcadkd"] = {"path": f"{folder}/mcadkd_x3.pth"}
    options["scale"] = 2
    with pytest.raises(CheckpointError, match=r"mcadkd_x3\.pth .*x3.*scale is 2"):
        run_test(options, root=tmp_path)


def test_self_ensemble_and_tiles_change_the_figures_as_they_should(options, finished, tmp_path):
    plain = finished[0].scales[0].rows
    quiet = {"report": {"html": False, "plots": False, "speed": False}, "scale": 2}
    tiled = run_test({**options, **quiet, "val": {**options["val"], "tile": 16}}, root=tmp_path / "tiled")
    ensemble = run_test({**options, **quiet, "val": {**options["val"], "self_ensemble": True}}, root=tmp_path / "x8")
    for rows in zip(plain, tiled.scales[0].rows, ensemble.scales[0].rows, strict=True):
        row = rows[0]
        before, cut, averaged = (each.evaluations["Set5"].values for each in rows)
        assert np.allclose(before, cut, atol=1e-3)
        assert np.allclose(before[:, 0], averaged[:, 0], atol=1.0)
        assert np.allclose(before, averaged, atol=1e-6) is (row.name == "bicubic")  # which commutes with flips


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"regions": [{"dataset": "Set5", "image": "img9", "x": 0, "y": 0}]}, DataError, "no image 'img9'"),
        (
            {"regions": [{"dataset": "Set5", "image": "img0", "x": 30, "y": 0, "size": 32}]},
            DataError,
            "does not lie in",
        ),
    ],
)
def test_a_region_that_is_not_there_is_one_line_before_anything_is_done(options, tmp_path, change, error, message):
    options["report"].update(change, html=False, speed=False)
    with pytest.raises(error, match=message):
        run_test(options, root=tmp_path)
    assert not (tmp_path / "results").exists()


def test_a_region_is_moved_by_what_another_scale_cuts_off(options, folder, tmp_path):
    """At x4 the HR images of 54 x 48 are cut to 52 x 48."""
    (tmp_path / "X4").mkdir()
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"X4/img{index}x4.png"), np.full((13, 12, 3), 90, np.uint8))
    block = {**options["datasets"]["test_1"], "dataroot_lq": f"{tmp_path}/X4"}
    region = {"dataset": "Set5", "image": "img0", "x": 16, "y": 22, "size": 32}
    options |= {"scale": 4, "datasets": {"test": block}, "networks": {"bicubic": {"type": "bicubic"}}}
    options["report"] = {"html": False, "speed": False, "regions": [region]}
    run_test(options, root=tmp_path)
    assert load_yaml(tmp_path / "results/both/comparison_x4.yml").data()["report"]["regions"] == [region]
    options["report"]["regions"] = [{**region, "y": 26}]
    with pytest.raises(DataError, match="does not lie in"):
        run_test(options, root=tmp_path)


def test_weights_that_do_not_fit_are_told_before_anything_is_done(options, folder, tmp_path):
    options["networks"]["last"] = {"network": network("{scale}"), "path": f"{folder}/scratch_x2.pth"}
    with pytest.raises(CheckpointError, match="wrong scale: it is for x2, the options say x3"):
        run_test(options, root=tmp_path)
    assert not (tmp_path / "results").exists()


def test_a_network_that_diverged_is_told_before_anything_is_done(options, folder, tmp_path):
    state = torch.load(folder / "scratch_x2.pth", weights_only=True)["params"]
    state["body.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save({"params": state}, tmp_path / "nan.pth")
    options |= {"scale": 2, "networks": {"bicubic": {"type": "bicubic"}, "nan": {"path": str(tmp_path / "nan.pth")}}}
    with pytest.raises(CheckpointError, match=r"nan\.pth was not loaded: its weight 'body.0.conv1.weight' has 1 of"):
        run_test(options, root=tmp_path)
    assert not (tmp_path / "results").exists()


def test_a_scale_without_any_network_is_left_out_and_the_others_are_tested(options, folder, tmp_path):
    options["networks"] = {"only": {"path": f"{folder}/scratch_x{{scale}}.pth"}}
    options |= {"network_g": network("{scale}"), "scale": [3, 4]}
    options["report"] = {"html": False, "plots": False, "speed": False}
    options["datasets"]["test_1"]["dataroot_lq"] = f"{folder}/X3"
    options["datasets"]["test_1"]["filename_tmpl"] = "{}x3"
    results = run_test(options, root=tmp_path)
    assert [[row.name for row in scale.rows] for scale in results.scales] == [["only"], []]
    options["scale"] = 4
    with pytest.raises(OptionsError, match="networks: none of them is there at x4"):
        run_test(options, root=tmp_path)


def test_lr_images_of_another_scale_are_refused(options, folder, tmp_path):
    options |= {"scale": 2, "networks": {"bicubic": {"type": "bicubic"}}}
    options["datasets"]["test_1"] |= {"dataroot_lq": f"{folder}/X3", "filename_tmpl": "{}x3"}
    with pytest.raises(DataError, match=r"HR .*img0\.png of 54x48 is much larger than 2 times LR .*x3\.png of 18x16"):
        run_test(options, root=tmp_path)


def test_two_images_of_one_name_are_refused_before_anything_is_done(options, folder, tmp_path):
    for name in ("a/p.png", "a/p.bmp", "b/p.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "list.txt").write_text("b/p.png\na/p.png\na/p.bmp\n")
    block = {"type": "SingleImageDataset", "name": "Mine", "dataroot_lq": str(tmp_path), "io_backend": {"type": "disk"}}
    options |= {"scale": 2, "datasets": {"test": {**block, "meta_info_file": str(tmp_path / "list.txt")}}}
    with pytest.raises(DataError, match=r"a/p\.png and .*a/p\.bmp would both be called a/p in the results; rename"):
        run_test(options, root=tmp_path)
    assert not (tmp_path / "results").exists()


def test_luma_alone_is_compared_and_shown(options, tmp_path):
    block = {**network(2), "num_in_ch": 1, "num_out_ch": 1, "rgb_mean": [0.5]}
    torch.save({"params": build_network(block).state_dict()}, tmp_path / "gray.pth")
    options["datasets"]["test_1"]["color"] = "y"
    options |= {"scale": 2, "networks": {"gray": {"path": str(tmp_path / "gray.pth")}, "bicubic": {"type": "bicubic"}}}
    options["val"]["metrics"] = {"psnr": {"type": "calculate_psnr"}}
    options["report"] = {"speed": False, "crops": 1}
    run_test(options, root=tmp_path)
    assert (tmp_path / "results/both/comparison_x2.png").is_file()
    assert (tmp_path / "results/both/report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": {"test": {"name": "../../escape"}}}, "datasets.test.name: is the name of a folder"),
        ({"datasets": {"test": {"name": "Set/5"}}}, "datasets.test.name: is the name of a folder"),
        ({"val": {"metrics": {"psnr/y": {"type": "calculate_psnr"}}}}, "val.metrics.psnr/y: is part of files' names"),
        ({"val": {"suffix": "a/b", "save_img": True}}, "val.suffix: is part of files' names"),
        (
            {"val": {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": -1}}}},
            "crop_border: input should be greater than or equal to 0, got -1",
        ),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, tmp_path, change, message):
    options["datasets"] = {"test": {**options["datasets"]["test_1"], **change.get("datasets", {}).get("test", {})}}
    options["val"] = change.get("val", options["val"])
    with pytest.raises(OptionsError, match=re.escape(message)):
        run_test(options, root=tmp_path)


def test_the_command_ends_with_the_tables_and_code_zero(options, tmp_path):
    file = tmp_path / "both.yml"
    file.write_text(dump_yaml(options))
    command = [sys.executable, str(ROOT / "basicsr/test.py"), "-opt", str(file)]
    quick = ["--force_yml", "report:plots=false", "report:html=false", "report:speed=false", "scale=2"]
    done = subprocess.run([*command, *quick], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "x2: left out Urban100: there is no folder" in done.stdout + done.stderr
    assert "| x2 " in (tmp_path / "results/both/summary.md").read_text()


def test_figures_in_less_than_float32_say_so_and_a_slow_precision_is_warned_of(options, tmp_path, monkeypatch):
    monkeypatch.setattr(pass_times, "times_of_network", lambda *given: pass_times.PassTimes((1.0,), (7.0,)))
    monkeypatch.setattr(pass_times, "has_units", lambda *given: False)
    quick = ["scale=2", "val:amp=bf16", "report:plots=false", "report:html=false", "report:speed=false"]
    results = run_test(options, force_yml=quick, root=tmp_path)
    log = next((tmp_path / "results/both").glob("test_both_*.log")).read_text()
    assert log.count("WARNING: val: amp: bf16 is slow here: it takes 7.00 times as long as float32") == 1
    assert results.precision == "bf16"
    assert "ran in bf16 (val: amp), not in float32" in (tmp_path / "results/both/summary.md").read_text()
