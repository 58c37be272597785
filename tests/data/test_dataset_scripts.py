from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.processes import start

from basicsr.data import build_dataset
from basicsr.utils import FileClient, imfrombytes
from basicsr.utils.lmdb_util import read_meta_info
from basicsr.utils.matlab_functions import imresize_integer

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "data"


FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Result:
    returncode: int | None
    stdout: str
    stderr: str


def run(script: str, *arguments: object, folder: Path) -> Result:
    """Runs a script as a command in `folder`, in a fork of this process: PyTorch is imported already."""
    command = [str(SCRIPTS / script), *map(str, arguments), "--workers", "2"]
    with tempfile.TemporaryDirectory() as outputs:
        paths = [Path(outputs) / name for name in ("stdout", "stderr")]
        process = FORK.Process(target=run_here, args=(command, folder, paths))
        process.start()
        process.join(timeout=120)
        return Result(process.exitcode, *(path.read_text() for path in paths))


def run_here(command: list[str], folder: Path, outputs: list[Path]) -> None:
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.argv, sys.path[0] = command, str(SCRIPTS)
    os.chdir(folder)
    runpy.run_path(command[0], run_name="__main__")


def write_images(folder: Path, sizes: dict[str, tuple[int, int]]) -> None:
    folder.mkdir(parents=True)
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        img = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / name), img)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def last_line(result: Result) -> str:
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("script", ["generate_lr.py", "extract_subimages.py", "create_lmdb.py", "check_dataset.py"])
def test_every_script_starts_from_any_folder_and_explains_itself(script, tmp_path):
    command = [sys.executable, str(SCRIPTS / script), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0
    assert "usage:" in result.stdout


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

    def test_a_rerun_does_what_is_left_and_no_more(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (16, 16), "b.png": (16, 16)})
        names = ("--input", "HR", "--output", "LR", "--scales", 2)
        run("generate_lr.py", *names, folder=tmp_path)
        before = files(tmp_path / "LR")
        (tmp_path / "LR" / "X2" / "bx2.png").unlink()
        times = (tmp_path / "LR" / "X2" / "ax2.png").stat().st_mtime_ns
        assert "made 1 of 2" in run("generate_lr.py", *names, folder=tmp_path).stdout
        assert files(tmp_path / "LR") == before
        assert (tmp_path / "LR" / "X2" / "ax2.png").stat().st_mtime_ns == times

    def test_two_ways_of_making_are_never_mixed(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (16, 16)})
        names = ("--input", "HR", "--output", "LR", "--scales", 2)
        run("generate_lr.py", *names, folder=tmp_path)
        result = run("generate_lr.py", *names, "--rounding", "once", folder=tmp_path)
        assert result.returncode == 3
        assert "remove it or write to another folder" in last_line(result)

    def test_a_damaged_image_is_told_in_one_line(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (16, 16)})
        path = tmp_path / "HR" / "a.png"
        path.write_bytes(path.read_bytes()[:-30])
        result = run("generate_lr.py", "--input", "HR", "--output", "LR", folder=tmp_path)
        assert result.returncode == 3
        assert last_line(result).startswith("error: cannot read image HR/a.png: the file is truncated")
        assert "Traceback" not in result.stderr

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


class TestExtractSubimages:
    def test_squares_cover_the_image_up_to_its_far_corner(self, tmp_path):
        write_images(tmp_path / "HR", {"a.png": (20, 26)})
        names = ("--input", "HR", "--output", "sub", "--crop-size", 12, "--step", 6)
        assert run("extract_subimages.py", *names, folder=tmp_path).returncode == 0
        img = cv2.imread(str(tmp_path / "HR" / "a.png"))
        corners = [(top, left) for top in (0, 6, 8) for left in (0, 6, 12, 14)]
        assert list(files(tmp_path / "sub")) == [f"a_s{number:03d}.png" for number in range(1, 13)]
        for number, (top, left) in enumerate(corners, start=1):
            square = cv2.imread(str(tmp_path / "sub" / f"a_s{number:03d}.png"))
            np.testing.assert_array_equal(square, img[top : top + 12, left : left + 12])

    def test_pairs_get_one_name_and_a_rerun_does_nothing(self, tmp_path):
        write_images(tmp_path / "LR", {"ax2.png": (10, 13)})
        names = ("--input", "LR", "--output", "sub", "--crop-size", 6, "--step", 3, "--strip-suffix", "x2")
        assert "made 12 squares" in run("extract_subimages.py", *names, folder=tmp_path).stdout
        assert "a_s012.png" in files(tmp_path / "sub")
        assert "made 0 squares" in run("extract_subimages.py", *names, folder=tmp_path).stdout

    def test_an_image_too_small_or_without_the_suffix_is_named(self, tmp_path):
        write_images(tmp_path / "LR", {"a.png": (10, 13)})
        names = ("--input", "LR", "--output", "sub", "--step", 3)
        small = run("extract_subimages.py", *names, "--crop-size", 11, folder=tmp_path)
        assert (small.returncode, "LR/a.png of 10x13 is smaller" in last_line(small)) == (3, True)
        other = run("extract_subimages.py", *names, "--crop-size", 4, "--strip-suffix", "x2", folder=tmp_path)
        assert (other.returncode, "does not end in 'x2'" in last_line(other)) == (3, True)


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
        assert len(problems) == 3
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
