from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time

import cv2
import numpy as np
import pytest
import torch
from support.data_scripts import SCRIPTS, files, last_line, run, write_images
from support.processes import start

from basicsr.config.schema import DatasetOptions
from basicsr.data import build_dataset
from basicsr.data.checks.checking import check_images, report
from basicsr.data.transforms import advice
from basicsr.files.band_files import as_type, bands_from_bytes, write_bands
from basicsr.files.lmdb_databases import read_meta_info
from basicsr.utils import FileClient, imfrombytes
from basicsr.utils.matlab_functions import imresize, imresize_integer


def test_every_script_starts_from_any_folder_and_explains_itself(tmp_path):
    scripts = ["generate_lr.py", "extract_subimages.py", "create_lmdb.py", "check_dataset.py", "prepare.py"]
    commands = [[sys.executable, str(SCRIPTS / script), "--help"] for script in scripts]
    running = [start(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for command in commands]
    for script, process in zip(scripts, running, strict=True):
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, script
        assert "usage:" in output and script in output


def test_scripts_that_make_no_tensors_do_not_import_torch():
    """Its import takes longer than the work on a few images."""
    code = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); sys.modules['torch'] = None; "
    code += "import create_lmdb, extract_subimages, generate_lr, basicsr.data.checks.inspection"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


class TestGenerateLr:
    def test_writes_matlabs_bicubic_by_scale_and_name(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (25, 31), "b.bmp": (24, 24)})
        result = run("generate_lr.py", "--input", "HR", "--output", "LR", "--scales", 2, 3, folder=tmp_path)
        assert result.returncode == 0, result.stderr
        assert list(files(tmp_path / "LR")) == ["X2/ax2.png", "X2/bx2.png", "X3/ax3.png", "X3/bx3.png"]
        hr = cv2.imread(str(tmp_path / "HR" / "a.png"))
        lr = cv2.imread(str(tmp_path / "LR" / "X3" / "ax3.png"))
        np.testing.assert_array_equal(lr, imresize_integer(hr[:24, :30], 1 / 3))

    def test_cut_hr_images_are_exactly_scale_times_lr(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (25, 31)})
        names = ("--input", "HR", "--output", "LR", "--hr-output", "cut")
        assert run("generate_lr.py", *names, "--scales", 2, 3, folder=tmp_path).returncode == 0
        assert cv2.imread(str(tmp_path / "cut" / "a.png")).shape == (24, 30, 3)
        for scale in (2, 3):
            checked = (
                "--hr",
                "cut",
                "--lr",
                f"LR/X{scale}",
                "--scale",
                scale,
                "--filename-tmpl",
                f"{{}}x{scale}",
            )
            assert run("check_dataset.py", *checked, folder=tmp_path).returncode == 0

    @pytest.mark.parametrize(("suffix", "dtype"), [(".tif", np.uint16), (".npy", np.float32)])
    def test_images_of_bands_stay_in_their_format(self, tmp_path, suffix, dtype):
        hr = as_type(np.random.default_rng(0).uniform(0, 1, (21, 17, 5)), np.dtype(dtype))
        write_bands(tmp_path / f"HR/a{suffix}", hr)
        names = "--input", "HR", "--output", "LR", "--scales", 2, "--hr-output", "cut", "--channels"
        result = run("generate_lr.py", *names, 5, folder=tmp_path)
        assert "filename_tmpl: '{}x2', io_backend: {type: bands, channels: 5}" in result.stdout
        cut = bands_from_bytes((tmp_path / f"cut/a{suffix}").read_bytes(), 5, "HR")
        np.testing.assert_array_equal(cut, hr[:20, :16])
        lr = bands_from_bytes((tmp_path / f"LR/X2/ax2{suffix}").read_bytes(), 5, "LR")
        expected = imresize_integer(cut, 0.5) if dtype == np.uint16 else imresize(cut, 0.5).clip(0, 1)
        np.testing.assert_array_equal(lr, expected)
        refused = run("generate_lr.py", *names, 3, folder=tmp_path)
        assert refused.returncode == 2 and "3 channels are colours" in refused.stderr

    def test_another_file_of_a_name_is_never_taken_for_the_one_before(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (16, 16), "b.png": (16, 16)})
        write_images(tmp_path / "other", {"b.png": (20, 24), "c.png": (16, 16)})
        for path in (tmp_path / "HR/b.png", tmp_path / "other/b.png"):
            os.utime(path, (1, 1))  # as photographs keep the time when they were taken
        names = ("--output", "LR", "--scales", 2)
        assert run("generate_lr.py", "--input", "HR", *names, folder=tmp_path).returncode == 0
        result = run("generate_lr.py", "--input", "other", *names, folder=tmp_path)
        made_of = str((tmp_path / "HR/b.png").resolve())
        assert result.returncode == 3
        assert f"other/b.png would be called b, as what was made of {made_of} before; rename one" in last_line(result)
        (tmp_path / "other/b.png").replace(tmp_path / "HR/b.png")
        assert "made 1 of 2 images" in run("generate_lr.py", "--input", "HR", *names, folder=tmp_path).stdout
        assert cv2.imread(str(tmp_path / "LR/X2/bx2.png")).shape == (10, 12, 3)
        (tmp_path / "HR").rename(tmp_path / "moved")
        assert "all 2 images" in run("generate_lr.py", "--input", "moved", *names, folder=tmp_path).stdout
        assert "made 1 image" in run("generate_lr.py", "--input", "other", *names, folder=tmp_path).stdout

    def test_a_rerun_does_what_is_left_and_no_more(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (16, 16), "b.png": (16, 16)})
        names = ("--input", "HR", "--output", "LR", "--scales", 2)
        assert run("generate_lr.py", *names, folder=tmp_path).stdout.startswith("LR: made 2 images\n")
        before = files(tmp_path / "LR")
        (tmp_path / "LR" / "X2" / "bx2.png").unlink()
        times = (tmp_path / "LR" / "X2" / "ax2.png").stat().st_mtime_ns
        assert "made 1 of 2 images, the others were there" in run("generate_lr.py", *names, folder=tmp_path).stdout
        assert "all 2 images were there" in run("generate_lr.py", *names, folder=tmp_path).stdout
        assert files(tmp_path / "LR") == before
        assert (tmp_path / "LR" / "X2" / "ax2.png").stat().st_mtime_ns == times

    def test_two_ways_of_making_are_never_mixed(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (16, 16)})
        names = ("--input", "HR", "--output", "LR", "--scales", 2)
        run("generate_lr.py", *names, folder=tmp_path)
        result = run("generate_lr.py", *names, "--rounding", "once", folder=tmp_path)
        assert result.returncode == 3
        assert "remove it or write to another folder" in last_line(result)

    def test_images_of_others_are_never_taken_for_its_own(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (16, 16)})
        write_images(tmp_path / "LR" / "X2", {"ax2.png": (5, 5)})
        result = run("generate_lr.py", "--input", "HR", "--output", "LR", "--scales", 2, folder=tmp_path)
        assert result.returncode == 3
        assert "LR/X2 holds images that this script did not make, as ax2.png; write to another" in last_line(result)

    def test_images_in_folders_below_come_into_one(self, tmp_path):
        for name in ("beach", "city/2024"):
            write_images(tmp_path / "photographs" / name, {"IMG_1.png": (25, 31), "IMG_2.png": (24, 24)})
        (tmp_path / "photographs/city/up").symlink_to(tmp_path / "photographs")
        names = ("--recursive", "--input", "photographs", "--output", "LR", "--scales", 3)
        result = run("generate_lr.py", *names, folder=tmp_path)
        assert (result.returncode, "needs --hr-output" in last_line(result)) == (2, True)
        result = run("generate_lr.py", *names, "--hr-output", "photographs/HR", folder=tmp_path)
        assert (result.returncode, "nor below it" in last_line(result)) == (3, True)
        result = run("generate_lr.py", *names, "--hr-output", "HR", folder=tmp_path)
        assert "dataroot_gt: HR, dataroot_lq: LR/X3, filename_tmpl: '{}x3'" in result.stdout, result.stderr
        expected = [f"{folder}_IMG_{number}.png" for folder in ("beach", "city_2024") for number in (1, 2)]
        assert list(files(tmp_path / "HR")) == expected
        assert "not read" not in result.stderr

    def test_all_images_that_are_too_small_are_told(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (3, 16), "b.png": (16, 16), "c.png": (2, 2)})
        result = run("generate_lr.py", "--input", "HR", "--output", "LR", "--scales", 4, folder=tmp_path)
        assert result.returncode == 3
        assert "HR/a.png of 3x16 is too small" in result.stderr and "HR/c.png of 2x2 is too small" in result.stderr
        assert list(files(tmp_path / "LR")) == ["X4/bx4.png"]

    def test_all_damaged_images_are_told_in_a_line_each_and_the_others_are_made(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (16, 16), "b.png": (16, 16), "c.png": (16, 16)})
        for path in (tmp_path / "HR" / "a.png", tmp_path / "HR" / "b.png"):
            path.write_bytes(path.read_bytes()[:-30])
        result = run("generate_lr.py", "--input", "HR", "--output", "LR", "--scales", 2, folder=tmp_path)
        assert result.returncode == 3
        first, second = result.stderr.splitlines()[-2:]
        assert first.startswith("error: cannot read image HR/a.png: the file is truncated")
        assert second.startswith("cannot read image HR/b.png: the file is truncated")
        assert "Traceback" not in result.stderr
        assert list(files(tmp_path / "LR")) == ["X2/cx2.png"]

    def test_links_in_circles_and_dead_ones_are_told_in_a_line_each(self, tmp_path):
        write_images(tmp_path / "hr", {"a.png": (24, 24)})
        for link, target in (("hr/b", "b"), ("hr/c", "gone"), ("out", "out")):
            (tmp_path / f"{link}.png").symlink_to(f"{target}.png")
        result = run("generate_lr.py", "--input", "hr", "--output", "lr", "--scales", "2", folder=tmp_path)
        assert result.returncode == 3 and list(files(tmp_path / "lr")) == ["X2/ax2.png"]
        told = [line for line in result.stderr.splitlines() if "cannot read hr/" in line]
        assert [line.split("cannot read ")[1][:8] for line in told] == ["hr/b.png", "hr/c.png"]
        result = run("generate_lr.py", "--input", "hr", "--output", "out.png", "--scales", "2", folder=tmp_path)
        assert result.returncode == 3 and last_line(result).startswith("error: cannot write to out.png/X2: ")

    def test_interrupted_it_leaves_whole_images_and_no_process(self, tmp_path):
        write_images(tmp_path / "HR", {f"{number:03d}.png": (400, 400) for number in range(40)})
        names = ("--input", "HR", "--output", "LR", "--scales", "2", "--workers", "2")
        command = [sys.executable, str(SCRIPTS / "generate_lr.py"), *names]
        process = start(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and len(list(tmp_path.glob("LR/X2/*.png"))) < 3:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]  # ends only when no process holds the pipe any more
        made = list((tmp_path / "LR" / "X2").iterdir())
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert 3 <= len([path for path in made if path.suffix == ".png"]) < 40
        assert all(cv2.imread(str(path)).shape == (200, 200, 3) for path in made if path.suffix == ".png")
        assert not [path for path in made if path.suffix == ".tmp"]


class TestBands:
    @pytest.mark.parametrize(("suffix", "dtype"), [(".tif", np.uint16), (".npy", np.float32)])
    def test_squares_are_cut_out_of_both_and_checked(self, tmp_path, suffix, dtype):
        values = cv2.resize(np.random.default_rng(0).uniform(0, 1, (30, 26, 5)), (52, 60))
        write_bands(tmp_path / f"HR/2024/a{suffix}", as_type(values, np.dtype(dtype)))
        bands = ("--channels", 5)
        made = run("generate_lr.py", "--input", "HR", "--output", "LR", "--scales", 2, *bands, folder=tmp_path)
        assert made.returncode == 0, made.stderr
        cut = "--input", "HR", "--output", "sub", "--lr-input", "LR", "--crop-size", 32, "--step", 28
        result = run("extract_subimages.py", *cut, *bands, folder=tmp_path)
        assert result.returncode == 0 and "made 4 squares of 32 pixels out of 1 image" in result.stdout, result.stderr
        assert "all squares of 1 image were there" in run("extract_subimages.py", *cut, *bands, folder=tmp_path).stdout
        hr, lr = (
            bands_from_bytes((tmp_path / f"{name}{suffix}").read_bytes(), 5, "whole")
            for name in ("HR/2024/a", "LR/X2/2024/ax2")
        )
        for number, (top, left) in enumerate([(0, 0), (0, 20), (28, 0), (28, 20)], start=1):
            squares = [tmp_path / f"{folder}/2024/a_s{number:03d}{suffix}" for folder in ("sub", "LR/X2_sub")]
            large, small = (bands_from_bytes(square.read_bytes(), 5, "square") for square in squares)
            assert large.dtype == small.dtype == dtype
            np.testing.assert_array_equal(large, hr[top : top + 32, left : left + 32])
            np.testing.assert_array_equal(small, lr[top // 2 : top // 2 + 16, left // 2 : left // 2 + 16])
        pair = "--hr", "sub", "--lr", "LR/X2_sub", "--scale", 2
        assert run("check_dataset.py", *pair, *bands, folder=tmp_path).returncode == 0
        write_bands(squares[1], small[::-1, ::-1])  # of another place
        broken = tmp_path / f"sub/2024/a_s001{suffix}"
        broken.write_bytes(broken.read_bytes()[:-40])
        for how in ((), ("--no-compare",), ("--no-compare", "--decode")):
            wrong = run("check_dataset.py", *pair, *bands, *how, folder=tmp_path)
            assert wrong.returncode == 3 and f"a_s001{suffix}: " in wrong.stdout, wrong.stdout
            assert ("shows something else than HR" in wrong.stdout or "out of step" in wrong.stdout) == (how == ())
        other = run("check_dataset.py", *pair, "--channels", 4, folder=tmp_path)
        assert other.returncode == 3 and "it has 5 channels, expected are 4" in other.stdout
        write_bands(tmp_path / f"odd/a{suffix}", hr[:-1])
        write_bands(tmp_path / f"small/a{suffix}", lr)
        odd = run("check_dataset.py", "--hr", "odd", "--lr", "small", "--scale", 2, *bands, folder=tmp_path)
        assert "--hr-output NEW_HR --scales 2 --channels 5; then" in odd.stdout
        (tmp_path / f"HR/2024/a{suffix}").unlink()
        write_bands(tmp_path / f"HR/b{suffix}", hr)
        alone = run("extract_subimages.py", *cut[:4], *cut[6:], *bands, folder=tmp_path)
        assert "was made with" in last_line(alone)  # another grid, without LR images

    def test_a_number_of_bands_that_is_none_is_told_in_one_line(self, tmp_path):
        write_bands(tmp_path / "HR/a.npy", np.zeros((8, 8, 5), np.uint8))
        commands = {
            "extract_subimages.py": ("--input", "HR", "--output", "sub", "--crop-size", 4, "--step", 4),
            "check_dataset.py": ("--hr", "HR", "--lr", "HR", "--scale", 1),
            "create_lmdb.py": ("--input", "HR", "--output", "HR.lmdb"),
        }
        for script, arguments in commands.items():
            for channels in (1, 3, 17):
                result = run(script, *arguments, "--channels", channels, folder=tmp_path)
                assert result.returncode == 2 and last_line(result).startswith("error: "), result.stderr
                assert result.stderr.count("\n") == 1
        assert "a database has colours" in last_line(result)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["HR"]


class TestCreateLmdb:
    def test_databases_train_like_their_folders(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (24, 24), "b.png": (24, 32)})
        run("generate_lr.py", "--input", "HR", "--output", "LR", "--scales", 2, folder=tmp_path)
        for source, target, suffix in (("HR", "hr.lmdb", ""), ("LR/X2", "lr.lmdb", "x2")):
            names = ("--input", source, "--output", target, "--strip-suffix", suffix)
            assert run("create_lmdb.py", *names, folder=tmp_path).returncode == 0
        assert read_meta_info(tmp_path / "lr.lmdb") == {"a": (12, 12, 3), "b": (12, 16, 3)}
        common = {"type": "PairedImageDataset", "scale": 2, "phase": "train", "gt_size": 16}
        packed = {"dataroot_gt": str(tmp_path / "hr.lmdb"), "dataroot_lq": str(tmp_path / "lr.lmdb")}
        plain = {"dataroot_gt": str(tmp_path / "HR"), "dataroot_lq": str(tmp_path / "LR" / "X2")}
        one = build_dataset({**common, **packed, "io_backend": {"type": "lmdb"}})
        other = build_dataset({**common, **plain, "io_backend": {"type": "disk"}, "filename_tmpl": "{}x2"})
        assert all(torch.equal(one[index][key], other[index][key]) for index in (0, 1) for key in ("lq", "gt"))

    def test_uncompressed_databases_hold_ppm_files_of_the_same_pixels(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (8, 9), "b.png": (7, 5)})
        deep = np.random.default_rng(0).integers(0, 65536, (6, 4, 3), dtype=np.uint16)
        assert cv2.imwrite(str(tmp_path / "HR" / "c.png"), deep)
        names = ("--input", "HR", "--output", "hr.lmdb", "--uncompressed")
        assert run("create_lmdb.py", *names, folder=tmp_path).returncode == 0
        text = (tmp_path / "hr.lmdb" / "meta_info.txt").read_text()
        assert text == "a.ppm (8,9,3) 0\nb.ppm (7,5,3) 0\nc.ppm (6,4,3) 0\n"
        client = FileClient("lmdb", db_paths=str(tmp_path / "hr.lmdb"))
        for name in "abc":
            content = client.get(name)
            decoded, png = imfrombytes(content), cv2.imread(str(tmp_path / "HR" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
            assert decoded.dtype == png.dtype and np.array_equal(decoded, png)
            assert len(content) < png.nbytes + 20
        assert "nothing to do" in run("create_lmdb.py", *names, folder=tmp_path).stdout
        other = run("create_lmdb.py", *names[:-1], folder=tmp_path)
        assert (other.returncode, "holds uncompressed images; remove it" in last_line(other)) == (3, True)
        both = run("create_lmdb.py", *names, "--compression", 3, folder=tmp_path)
        assert (both.returncode, "not allowed with argument" in last_line(both)) == (2, True)

    def test_a_rerun_keeps_a_complete_database_and_refuses_another(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (8, 8)})
        names = ("--input", "HR", "--output", "hr.lmdb")
        run("create_lmdb.py", *names, folder=tmp_path)
        assert "nothing to do" in run("create_lmdb.py", *names, folder=tmp_path).stdout
        (tmp_path / "HR" / "b.png").write_bytes((tmp_path / "HR" / "a.png").read_bytes())
        result = run("create_lmdb.py", *names, folder=tmp_path)
        assert (result.returncode, "holds other images" in last_line(result)) == (3, True)

    def test_a_damaged_image_leaves_no_database(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (8, 8), "b.png": (8, 8)})
        (tmp_path / "HR" / "b.png").write_bytes(b"junk")
        assert run("create_lmdb.py", "--input", "HR", "--output", "hr.lmdb", folder=tmp_path).returncode == 3
        assert [entry.name for entry in tmp_path.iterdir()] == ["HR"]


class TestCheckDataset:
    @pytest.fixture
    def root(self, tmp_path):
        """A root in the documented layout with DIV2K at x2 and one benchmark at x2 and x3."""
        write_images(tmp_path / "datasets/DIV2K/DIV2K_train_HR", {"0001.png": (24, 36), "0002.png": (24, 24)})
        write_images(tmp_path / "datasets/benchmark/Set5/HR", {"baby.png": (25, 25)})
        for name, scales in (("DIV2K/DIV2K_train_HR", (2,)), ("benchmark/Set5/HR", (2, 3))):
            source = tmp_path / "datasets" / name
            target = source.parent / ("LR_bicubic" if source.name == "HR" else "DIV2K_train_LR_bicubic")
            run("generate_lr.py", "--input", source, "--output", target, "--scales", *scales, folder=tmp_path)
        return tmp_path

    def test_a_sound_layout_passes_though_benchmarks_have_pixels_left_over(self, root):
        result = run("check_dataset.py", "--decode", folder=root)
        assert result.returncode == 0, result.stdout
        rows = [line.split() for line in result.stdout.splitlines()]
        assert rows[0] == ["HR", "LR", "scale", "pairs", "problems"]
        assert [row[2:] for row in rows[1:]] == [["2", "2", "0"], ["2", "1", "0"], ["3", "1", "0"]]

    def test_sets_of_which_one_half_is_not_there_are_told(self, root):
        (root / "datasets/benchmark/Set14/HR").mkdir(parents=True)
        (root / "datasets/benchmark/Urban100/LR_bicubic/X2").mkdir(parents=True)
        result = run("check_dataset.py", "--no-compare", folder=root)
        assert result.returncode == 0
        assert "warning: datasets/benchmark/Set14/LR_bicubic/X2 is not there, so Set14 is not checked" in result.stderr
        assert "warning: datasets/benchmark/Urban100/HR is not there, so Urban100 is not checked" in result.stderr
        assert "warning: datasets/benchmark/Set5/HR: 1 image here, Set5 has 5" in result.stderr

    def test_scales_asked_for_must_be_there(self, root):
        result = run("check_dataset.py", "--scales", 3, folder=root)
        assert result.returncode == 3
        assert "problem: cannot read folder datasets/DIV2K/DIV2K_train_LR_bicubic/X3" in result.stdout

    def test_damage_wrong_sizes_and_missing_partners_are_listed(self, root):
        lr = root / "datasets/DIV2K/DIV2K_train_LR_bicubic/X2"
        (lr / "0001x2.png").write_bytes((lr / "0001x2.png").read_bytes()[:-20])
        cv2.imwrite(str(lr / "0002x2.png"), np.zeros((11, 12, 3), np.uint8))
        (root / "datasets/benchmark/Set5/LR_bicubic/X3/babyx3.png").rename(root / "elsewhere.png")
        result = run("check_dataset.py", folder=root)
        assert result.returncode == 3
        problems = [line for line in result.stdout.splitlines() if line.startswith("problem: ")]
        assert len(problems) == 3, result.stdout
        assert "0001x2.png: the file is truncated" in problems[0]
        assert "0002.png is 24x24" in problems[1] and "is 11x12: not 2 times as large" in problems[1]
        assert "X3 holds no image" in problems[2]

    def test_training_images_with_pixels_left_over_are_a_problem(self, root):
        folders = ("--hr", "datasets/benchmark/Set5/HR", "--lr", "datasets/benchmark/Set5/LR_bicubic/X2")
        arguments = (*folders, "--scale", 2, "--filename-tmpl", "{}x2")
        assert run("check_dataset.py", *arguments, folder=root).returncode == 3
        assert run("check_dataset.py", *arguments, "--allow-remainder", folder=root).returncode == 0

    def test_an_empty_root_is_told_in_one_line(self, tmp_path):
        result = run("check_dataset.py", folder=tmp_path)
        assert result.returncode == 3
        assert result.stderr.strip() == (
            "error: datasets holds no pairs of HR and LR folders; see datasets/README.md for the layout"
        )


def test_lr_images_whose_sides_are_rounded_up_get_the_same_advice_and_other_scales_are_named():
    for scale, size in ((3, (17, 18)), (4, (13, 14)), (2, (25, 27))):  # of 49x53, as MATLAB makes them
        assert f"--hr-output NEW_HR --scales {scale};" in advice((49, 53), size, scale, "HR/a.png")
    assert advice((48, 48), (24, 24), 3, "HR/a.png").startswith("the LR image is of scale 2; check scale")


def test_the_advice_on_sides_that_are_no_multiple_leads_to_a_dataset_that_trains(tmp_path):
    """Followed to the letter, as often as there is advice."""
    write_images(tmp_path / "HR", {"a.png": (49, 53), "b.png": (50, 48)})
    write_images(tmp_path / "HR" / "more", {"c.png": (101, 64)})
    assert run("generate_lr.py", "--input", "HR", "--output", "LR", "--scales", 3, folder=tmp_path).returncode == 0
    block = {"type": "PairedImageDataset", "scale": 3, "phase": "train", "gt_size": 48, "name": "mine"}
    roots = {"dataroot_gt": "HR", "dataroot_lq": "LR/X3", "filename_tmpl": "{}x3"}
    advice = 0
    while True:
        given = {**roots, "dataroot_gt": str(tmp_path / roots["dataroot_gt"])}
        given["dataroot_lq"] = str(tmp_path / roots["dataroot_lq"])
        dataset = build_dataset({**block, **given})
        bad = check_images(dataset, DatasetOptions(**block, **given), processes=1)
        if not bad:
            break
        told = report(bad, len(dataset), "mine")
        found = re.search(
            r"by: python scripts/data/(generate_lr\.py) (--input .*); then set dataroot_gt: (\S+), dataroot_lq: (\S+),"
            r" filename_tmpl: '(\S+)'",
            told,
        )
        assert found, told
        assert run(found[1], *shlex.split(found[2]), folder=tmp_path).returncode == 0
        roots = {"dataroot_gt": found[3], "dataroot_lq": found[4], "filename_tmpl": found[5]}
        advice += 1
        assert advice < 3
    assert advice == 1
    assert all(dataset[index]["gt"].shape == (3, 48, 48) for index in range(3))
    checked = ("--hr", roots["dataroot_gt"], "--lr", roots["dataroot_lq"], "--scale", 3, "--filename-tmpl", "{}x3")
    assert run("check_dataset.py", *checked, folder=tmp_path).returncode == 0


class TestFoldersBelowListsAndPatterns:
    """Every script takes them, and what it writes is called by the images' names in their folders."""

    @pytest.fixture
    def sets(self, tmp_path):
        """Photographs in A/HR, A/HR/2019 and B/HR, two of them of one name in each set."""
        for folder, names in (("A/HR", "ab"), ("A/HR/2019", "a"), ("B/HR", "a")):
            write_images(tmp_path / folder, {f"{name}.png": (48 + 2 * len(folder), 64) for name in names})
        return tmp_path

    def test_from_photographs_to_squares_and_databases(self, sets):
        names = ["A/2019/a", "A/a", "A/b", "B/a"]
        both = ("--input", "A/HR", "B/HR")
        made = run("generate_lr.py", *both, "--output", "LR", "--scales", 2, "--hr-output", "HR", folder=sets)
        assert made.returncode == 0, made.stderr
        warning = "A/HR: 2 in it and 1 in 1 folder (2019: 1) below are used; its own alone by A/HR/*.png"
        assert f"warning: {warning}" in made.stderr
        assert list(files(sets / "HR")) == [f"{name}.png" for name in names]
        assert list(files(sets / "LR/X2")) == [f"{name}x2.png" for name in names]
        checks = ("--scale", 2, "--filename-tmpl", "{}x2")
        for hr, lr in ((("HR/A", "HR/B"), ("LR/X2/A", "LR/X2/B")), (("[AB]/HR",), ("LR/X2",))):
            checked = run("check_dataset.py", "--hr", *hr, "--lr", *lr, *checks, folder=sets)
            assert checked.returncode == 0, checked.stdout
            assert checked.stdout.splitlines()[1].split()[-2:] == ["4", "0"]

        grid = ("--crop-size", 48, "--step", 48, "--thresh-size", 32)
        folders = ("--input", "HR/A", "HR/B", "--lr-input", "LR/X2/A", "LR/X2/B")
        lists = (*folders, "--filename-tmpl", "{}x2", "--scales", 2)
        refused = run("extract_subimages.py", *lists, "--output", "HR_sub", *grid, folder=sets)
        assert (refused.returncode, "several folders of --lr-input need --lr-output" in refused.stderr) == (2, True)
        outputs = ("--output", "HR_sub", "--lr-output", "LR_sub")
        cut = run("extract_subimages.py", *lists, *outputs, *grid, folder=sets)
        assert cut.returncode == 0, cut.stderr
        squares = [f"{name}_s001.png" for name in names]
        assert list(files(sets / "HR_sub")) == list(files(sets / "LR_sub")) == squares
        again = run("extract_subimages.py", *lists, *outputs, *grid, folder=sets)
        assert "all squares of 4 images were there" in again.stdout
        (sets / "HR" / "A" / "2019" / "a.png").unlink()
        (sets / "LR" / "X2" / "A" / "2019" / "ax2.png").unlink()
        left = run("extract_subimages.py", *lists, *outputs, *grid, folder=sets)
        assert "HR_sub has squares of images that are not in the input: A/2019/a; training would" in left.stderr

        for role, suffix in (("HR", ""), ("LR", "x2")):
            folders = [f"HR/{name}" if role == "HR" else f"LR/X2/{name}" for name in "AB"]
            names_of = ("--input", *folders, "--output", f"{role}.lmdb", f"--strip-suffix={suffix}")
            assert run("create_lmdb.py", *names_of, folder=sets).returncode == 0
            assert list(read_meta_info(sets / f"{role}.lmdb")) == ["1/a", "1/b", "2/a"]

    def test_lists_of_images_choose(self, sets):
        (sets / "a.txt").write_text("2019/a.png\n")
        (sets / "b.txt").write_text("a.png (56,64,3)\n")
        chosen = ("--input", "A/HR", "B/HR", "--meta-info", "a.txt", "b.txt")
        assert run("create_lmdb.py", *chosen, "--output", "a.lmdb", folder=sets).returncode == 0
        assert list(read_meta_info(sets / "a.lmdb")) == ["1/2019/a", "2/a"]
        assert run("generate_lr.py", *chosen, "--output", "LR", "--scales", 2, folder=sets).returncode == 0
        assert list(files(sets / "LR")) == ["X2/A/2019/ax2.png", "X2/B/ax2.png"]
        lr = ("--hr", "A/HR", "--lr", "LR/X2/A", "--scale", 2, "--filename-tmpl", "{}x2")
        assert run("check_dataset.py", *lr, "--meta-info", "a.txt", folder=sets).returncode == 0
        pairs = ("--hr", "A/HR", "B/HR", "--lr", "LR/X2/A", "LR/X2/B", "--filename-tmpl", "{}x2", *chosen[3:])
        assert run("create_shards.py", *pairs, "--output", "shards", folder=sets).returncode == 0
        with tarfile.open(sets / "shards" / "000000.tar") as shard:
            assert shard.getnames() == ["1/2019/a.hr.png", "1/2019/a.lr.png", "2/a.hr.png", "2/a.lr.png"]

    def test_what_was_made_of_photographs_is_not_taken_for_them(self, sets):
        names = ("generate_lr.py", "--input", "A/HR", "--output", "A/HR/LR", "--scales", 2)
        for _ in range(2):
            assert run(*names, folder=sets).returncode == 0
        told = run(*names, folder=sets)
        assert "all 3 images were there" in told.stdout
        assert "warning: A/HR: 1 folder (LR/X2: 3) in it, with images, not read (made by a script here)" in told.stderr
        squares = ("--crop-size", 32, "--step", 32, "--output", "A/HR/squares")
        refused = run("extract_subimages.py", "--input", "A/HR", *squares, folder=sets)
        assert (refused.returncode, "nor below it; name another folder" in last_line(refused)) == (3, True)

    @pytest.mark.parametrize(
        ("script", "inputs", "message"),
        [
            ("generate_lr.py", ("A/HR", "C"), "cannot read folder C: No such file or directory"),
            ("create_lmdb.py", ("A/HR", "empty"), "empty holds no image"),
            ("extract_subimages.py", ("A/HR", "A/HR"), "a.png is listed twice; name each folder once"),
            ("generate_lr.py", ("A/HR", "A/HR/2019"), "a.png is listed twice; name each folder once"),
            ("generate_lr.py", ("A/HR/*",), "A/HR/* matches both images (A/HR/a.png) and folders with images"),
            ("create_lmdb.py", ("x/*.png",), "x/*.png matches nothing, as there is no folder x"),
            ("extract_subimages.py", ("twice",), "twice/a.jpg and twice/a.png would both be called a; rename one"),
        ],
    )
    def test_of_no_use_are_told_in_one_line_and_nothing_is_written(self, sets, script, inputs, message):
        (sets / "empty").mkdir()
        write_images(sets / "twice", {"a.png": (40, 40), "a.jpg": (40, 40)})
        before = sorted(sets.rglob("*"))
        grid = ("--crop-size", 32, "--step", 32) if script == "extract_subimages.py" else ()
        output = "out.lmdb" if script == "create_lmdb.py" else "out"
        result = run(script, "--input", *inputs, "--output", output, *grid, folder=sets)
        assert (result.returncode, result.stderr.count("\n")) == (3, 1), result.stderr
        assert message in result.stderr
        assert sorted(sets.rglob("*")) == before


_WAITING = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import dataset_tools
def own_number(task):
    return os.getpid()
for pid in dataset_tools.in_processes(own_number, range(2), 2, "x"):
    print(pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's end")
def test_workers_end_with_a_killed_parent():
    process = subprocess.Popen([sys.executable, "-c", _WAITING, str(SCRIPTS)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and int(process.stdout.readline()) != process.pid
    process.kill()
    process.communicate(timeout=120)  # ends when no process has the pipe any more
