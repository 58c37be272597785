"""HR and LR are cut by one grid: every LR square is the LR window of its HR square, to the pixel."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.data_scripts import files, last_line, run, write_images

from basicsr.config.schema import DatasetOptions
from basicsr.data import build_dataset
from basicsr.data.checks.checking import find_misalignment
from basicsr.data.transforms import mod_crop
from basicsr.engine.inputs import check_datasets
from basicsr.engine.process.distributed import RankInfo
from basicsr.utils.matlab_functions import imresize_integer


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Detail at every place, uint8 (H, W, 3)."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (height // 3 + 2, width // 3 + 2, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def write_set(root: Path, sizes: Mapping[str, tuple[int, int]], scales: tuple[int, ...], cut: int = 1) -> None:
    """HR, and LR/X2 ... made of HR cut to a multiple of `cut` and of the scale."""
    for seed, (name, size) in enumerate(sizes.items()):
        hr = picture(seed, *size)
        save(root / "HR" / f"{name}.png", hr)
        for scale in scales:
            save(
                root / f"LR/X{scale}/{name}x{scale}.png",
                imresize_integer(mod_crop(mod_crop(hr, cut), scale), 1 / scale),
            )


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def corner(square: np.ndarray, image: np.ndarray) -> tuple[int, int]:
    """Where a square lies in an image; it must lie there to the pixel."""
    found = cv2.matchTemplate(image, square, cv2.TM_SQDIFF)
    top, left = np.unravel_index(int(found.argmin()), found.shape)
    height, width = square.shape[:2]
    np.testing.assert_array_equal(image[top : top + height, left : left + width], square)
    return int(top), int(left)


def compare_all(root: Path, scales: tuple[int, ...], side: int) -> dict[str, list[tuple[int, int]]]:
    """Holds every pair of squares against the images; the corners of each image's squares, in HR pixels."""
    corners: dict[str, list[tuple[int, int]]] = {}
    names = [path.name for path in sorted((root / "HR_sub").glob("*.png"))]
    for scale in scales:
        assert [path.name for path in sorted((root / f"LR/X{scale}_sub").glob("*.png"))] == names
    for name in names:
        stem = name.rpartition("_s")[0]
        square = cv2.imread(str(root / "HR_sub" / name))
        assert square.shape == (side, side, 3)
        top, left = corner(square, cv2.imread(str(root / f"HR/{stem}.png")))
        corners.setdefault(stem, []).append((top, left))
        for scale in scales:
            lr = cv2.imread(str(root / f"LR/X{scale}/{stem}x{scale}.png"))
            small = cv2.imread(str(root / f"LR/X{scale}_sub" / name))
            assert small.shape == (side // scale, side // scale, 3)
            y, x = top / scale, left / scale
            assert (y, x) == (int(y), int(x)), (name, scale)
            np.testing.assert_array_equal(small, lr[int(y) : int(y) + side // scale, int(x) : int(x) + side // scale])
            assert find_misalignment(square, small, scale) is None
    return corners


COMMAND = ("--input", "HR", "--output", "HR_sub", "--lr-input", "LR")


class TestEveryPair:
    @pytest.mark.parametrize(
        ("scales", "cut", "side", "step", "thresh"),
        [((2, 4), 1, 96, 48, 0), ((2, 3, 4), 1, 96, 60, 0), ((2, 3, 4), 12, 96, 48, 0), ((3,), 1, 96, 51, 12)],
    )
    def test_has_the_window_of_its_hr_square(self, tmp_path, scales, cut, side, step, thresh):
        sizes = {"a": (121, 121), "b": (125, 118), "c": (120, 144), "d": (101, 203)}
        write_set(tmp_path, sizes, scales, cut)
        grid = ("--crop-size", side, "--step", step, "--thresh-size", thresh)
        result = run("extract_subimages.py", *COMMAND, *grid, folder=tmp_path)
        assert result.returncode == 0, result.stderr
        corners = compare_all(tmp_path, scales, side)
        multiple = int(np.lcm.reduce(scales))
        for name, size in sizes.items():
            ends = [max(found[axis] for found in corners[name]) + side for axis in (0, 1)]
            for end, length in zip(
                ends, size, strict=True
            ):  # all is covered but what fills no multiple, or is asked for
                assert 0 <= length - end < max(multiple, cut) + max(thresh, 1)
        assert "sides are cut to a multiple of" in result.stdout

    def test_of_blurred_images_is_cut_at_scale_one(self, tmp_path):
        for seed, (name, size) in enumerate({"a": (70, 90), "b": (64, 64)}.items()):
            save(tmp_path / "target" / f"{name}.png", picture(seed, *size))
            save(tmp_path / "input" / f"{name}.png", cv2.GaussianBlur(picture(seed, *size), (0, 0), 2))
        names = ("--input", "target", "--output", "target_sub", "--lr-input", "input", "--scales", 1)
        grid = ("--crop-size", 64, "--step", 32)
        assert run("extract_subimages.py", *names, *grid, folder=tmp_path).returncode == 0
        assert sorted(files(tmp_path / "target_sub")) == sorted(files(tmp_path / "input_sub"))
        checked = ("--hr", "target_sub", "--lr", "input_sub", "--scale", 1)
        assert run("check_dataset.py", *checked, folder=tmp_path).returncode == 0


class TestReruns:
    @pytest.fixture
    def root(self, tmp_path):
        write_set(tmp_path, {"a": (60, 60), "b": (50, 48)}, (2, 4))
        self.cut(tmp_path)
        return tmp_path

    def cut(self, root: Path, *more: object) -> tuple[int | None, str, str]:
        grid = ("--crop-size", 48, "--step", 24)
        result = run("extract_subimages.py", *COMMAND, *grid, *more, folder=root)
        return result.returncode, result.stdout, result.stderr

    def test_do_what_is_left_in_any_folder(self, root):
        before = files(root)
        assert "all squares of 2 images were there" in self.cut(root)[1]
        (root / "LR/X4_sub/b_s001.png").unlink()
        (root / "HR_sub/a_s003.png").unlink()
        shutil.rmtree(root / "LR/X2_sub")
        code, output, _ = self.cut(root)
        assert (code, "out of 2 images" in output) == (0, True)
        assert files(root) == before

    def test_cut_changed_images_again_and_leave_no_square_of_the_old_ones(self, root):
        hr = picture(7, 48, 48)
        save(root / "HR/a.png", hr)
        for scale in (2, 4):
            save(root / f"LR/X{scale}/ax{scale}.png", imresize_integer(hr, 1 / scale))
        assert "out of 1 of 2 images; those of the others were there" in self.cut(root)[1]
        assert [name for name in files(root / "HR_sub") if name.startswith("a")] == ["a_s001.png"]
        compare_all(root, (2, 4), 48)

    def test_tell_of_squares_whose_image_is_gone(self, root):
        for name in ("HR/b.png", "LR/X2/bx2.png", "LR/X4/bx4.png"):
            (root / name).unlink()
        code, _, errors = self.cut(root)
        assert (code, errors.count("squares of images that are not in the input: b")) == (0, 3)

    def test_never_mix_two_grids(self, root):
        before = files(root)
        for more in (("--scales", 2), ("--thresh-size", 6)):
            code, _, errors = self.cut(root, *more)
            assert (code, "remove it or write to another folder" in errors) == (3, True)
        save(root / "other/a.png", picture(0, 48, 48))
        code, _, errors = self.cut(root, "--output", "other")
        assert (code, "holds images that this script did not make" in errors) == (3, True)
        assert {name: content for name, content in files(root).items() if not name.startswith("other")} == before


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            ((*COMMAND, "--crop-size", 50, "--step", 24), 2, "--crop-size 50: must be a multiple of 4"),
            ((*COMMAND, "--crop-size", 48, "--step", 10), 2, "--step 10: must be a multiple of 4"),
            ((*COMMAND, "--crop-size", 52, "--step", 24), 3, "HR/b.png of 50x48 is smaller than --crop-size 52"),
            (
                (*COMMAND[:3], "HR", *COMMAND[4:], "--crop-size", 48, "--step", 24),
                3,
                "--output HR must not be HR, which holds images to take",
            ),
            ((*COMMAND[:5], "LR/X2", "--crop-size", 48, "--step", 24), 2, "say by --scales of which one scale it is"),
            ((*COMMAND, "--crop-size", 48, "--step", 24, "--filename-tmpl", "{}"), 3, "set filename_tmpl: '{}x2'"),
            ((*COMMAND, "--crop-size", 48, "--step", 24, "--scales", 3), 3, "LR/X3: No such file"),
            (("--input", "LR/X2", "--output", "o", "--crop-size", 8, "--step", 8), 2, "so that both have one grid"),
            (
                ("--input", "HR", "--output", "o", "--crop-size", 8, "--step", 8, "--strip-suffix", "x2"),
                2,
                "LR images are cut together with their HR images",
            ),
        ],
    )
    def test_are_told_in_a_line_and_nothing_is_written(self, tmp_path, arguments, code, message):
        write_set(tmp_path, {"a": (60, 60), "b": (50, 48)}, (2, 4))
        before = sorted(tmp_path.rglob("*"))
        result = run("extract_subimages.py", *arguments, folder=tmp_path)
        assert (result.returncode, message in last_line(result)) == (code, True), result.stderr
        assert sorted(tmp_path.rglob("*")) == before

    def test_of_images_are_told_all_at_once(self, tmp_path):
        write_set(tmp_path, {"a": (60, 60), "b": (60, 60), "c": (60, 60)}, (2,))
        save(tmp_path / "LR/X2/ax2.png", picture(0, 60, 60))
        content = (tmp_path / "HR/b.png").read_bytes()
        (tmp_path / "HR/b.png").write_bytes(content[:-20])
        result = run("extract_subimages.py", *COMMAND, "--crop-size", 48, "--step", 24, folder=tmp_path)
        assert result.returncode == 3 and "error: 2 of 3 images cannot be cut:\n  HR HR/a.png" in result.stderr
        assert "HR HR/a.png of 60x60 is smaller than 2 times LR LR/X2/ax2.png of 60x60" in result.stderr
        assert "HR/b.png: the file is truncated" in result.stderr
        assert not (tmp_path / "HR_sub").exists()


def test_hr_images_alone_are_covered_up_to_their_far_corner(tmp_path):
    write_images(tmp_path / "HR", {"a.png": (20, 26)})
    names = ("--input", "HR", "--output", "sub", "--crop-size", 12, "--step", 6)
    result = run("extract_subimages.py", *names, folder=tmp_path)
    assert result.returncode == 0 and "made 12 squares of 12 pixels out of 1 image" in result.stdout
    img = cv2.imread(str(tmp_path / "HR" / "a.png"))
    corners = [(top, left) for top in (0, 6, 8) for left in (0, 6, 12, 14)]
    for number, (top, left) in enumerate(corners, start=1):
        square = cv2.imread(str(tmp_path / "sub" / f"a_s{number:03d}.png"))
        np.testing.assert_array_equal(square, img[top : top + 12, left : left + 12])


class TestPairsOfOtherTools:
    @pytest.mark.parametrize("scale", [2, 3, 4])
    @pytest.mark.parametrize("shift", [(1, 0), (0, -1), (1, 1)])
    def test_out_of_step_are_found(self, scale, shift):
        image = picture(scale, 200, 220)
        top, left = shift
        hr = image[8 : 8 + 40 * scale, 8 : 8 + 44 * scale]
        moved = image[8 + top : 8 + top + 40 * scale, 8 + left : 8 + left + 44 * scale]
        found = find_misalignment(hr, imresize_integer(moved, 1 / scale), scale)
        assert found is not None and f"moved by {top} rows and {left} columns" in found

    @pytest.mark.parametrize("scale", [1, 2, 3, 4])
    def test_in_step_are_none_however_they_were_degraded(self, scale):
        generator = np.random.default_rng(scale)
        hr = picture(scale, 40 * scale, 44 * scale)
        lr = imresize_integer(hr, 1 / scale)
        noisy = np.clip(lr + generator.normal(0, 25, lr.shape), 0, 255).astype(np.uint8)
        jpeg = cv2.imdecode(cv2.imencode(".jpg", lr, [cv2.IMWRITE_JPEG_QUALITY, 20])[1], cv2.IMREAD_COLOR)
        deep = hr.astype(np.uint16) * 257, lr.astype(np.uint16) * 257
        area = cv2.resize(hr, (44, 40), interpolation=cv2.INTER_AREA)
        for other in (lr, noisy, jpeg, cv2.GaussianBlur(lr, (0, 0), 1.5), (lr * 0.3).astype(np.uint8), area):
            assert find_misalignment(hr, other, scale) is None
        assert find_misalignment(*deep, scale) is None
        flat = np.full_like(hr, 90)
        assert find_misalignment(flat, flat[: lr.shape[0], : lr.shape[1]], scale) is None

    def test_of_another_picture_are_found(self):
        hr, other = picture(0, 160, 160), picture(1, 160, 160)
        assert "shows something else" in str(find_misalignment(hr, imresize_integer(other, 0.5), 2))

    def test_are_problems_to_check_dataset(self, tmp_path):
        """The far edge of 485 x 485 cut as BasicSR's script cuts HR and LR, each by its own grid."""
        image = picture(0, 101, 101)
        lr = imresize_integer(mod_crop(image, 2), 0.5)
        for number, (large, small) in enumerate(((0, 0), (5, 2))):  # HR 101 - 96 = 5, LR 50 - 48 = 2
            save(tmp_path / f"HR/a_s00{number}.png", image[large : large + 96, large : large + 96])
            save(tmp_path / f"LR/a_s00{number}.png", lr[small : small + 48, small : small + 48])
        arguments = ("--hr", "HR", "--lr", "LR", "--scale", 2)
        result = run("check_dataset.py", *arguments, folder=tmp_path)
        assert result.returncode == 3
        (problem,) = [line for line in result.stdout.splitlines() if line.startswith("problem")]
        assert "HR/a_s001.png and LR LR/a_s001.png: LR is out of step" in problem
        assert "moved by -1 rows and -1 columns" in problem and "extract_subimages.py --lr-input" in problem
        assert run("check_dataset.py", *arguments, "--no-compare", folder=tmp_path).returncode == 0

    def test_are_told_when_a_run_begins(self, tmp_path):
        image = picture(0, 101, 101)
        lr = imresize_integer(mod_crop(image, 2), 0.5)
        for number, (large, small) in enumerate(((0, 0), (5, 2))):
            save(tmp_path / f"HR/a_s00{number}.png", image[large : large + 96, large : large + 96])
            save(tmp_path / f"LR/a_s00{number}.png", lr[small : small + 48, small : small + 48])
        block = {"name": "mine", "type": "PairedImageDataset", "phase": "train", "scale": 2, "gt_size": 48}
        block |= {"dataroot_gt": str(tmp_path / "HR"), "dataroot_lq": str(tmp_path / "LR")}
        _, (told,) = check_datasets([(build_dataset(block), DatasetOptions(**block))], RankInfo(torch.device("cpu")))
        assert told.startswith(
            f"mine: 1 of 2 pairs looked at do not fit, as {tmp_path}/HR/a_s001.png: LR is out of step"
        )
        assert check_datasets(
            [(build_dataset(block), DatasetOptions(**block, check_images="none"))], RankInfo(torch.device("cpu"))
        ) == ([[]], [])

    def test_that_are_one_picture_twice_are_told(self, tmp_path):
        for name in ("a", "b"):
            save(tmp_path / f"HR/{name}.png", picture(0, 48, 48))
        block = {"name": "mine", "type": "PairedImageDataset", "phase": "test", "scale": 1}
        block |= {"dataroot_gt": str(tmp_path / "HR"), "dataroot_lq": str(tmp_path / "HR")}

        def remarks():
            return check_datasets([(build_dataset(block), DatasetOptions(**block))], RankInfo(torch.device("cpu")))[1]

        (told,) = remarks()
        assert "2 of 2 pairs looked at do not fit" in told and "LR is equal to HR" in told
        save(tmp_path / "LR/a.png", picture(0, 48, 48))
        save(tmp_path / "LR/b.png", picture(0, 48, 48) // 2)
        block["dataroot_lq"] = str(tmp_path / "LR")
        assert remarks() == []  # as where a set has images without rain
        result = run("check_dataset.py", "--hr", "HR", "--lr", "LR", "--scale", 1, folder=tmp_path)
        assert result.returncode == 3
        assert result.stdout.count("problem: ") == 1 and "HR/a.png and LR LR/a.png: LR is equal" in result.stdout
        result = run("generate_lr.py", "--input", "HR", "--output", "X", "--scales", 1, folder=tmp_path)
        assert result.returncode != 0 and "--scales 1 would make copies" in result.stderr

    @pytest.mark.parametrize("scale", [1, 2])
    def test_of_gray_and_colour_are_problems_to_check_dataset(self, tmp_path, scale):
        image = picture(0, 96, 96)
        save(tmp_path / "HR/a.png", cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
        save(tmp_path / "LR/a.png", image if scale == 1 else imresize_integer(image, 0.5))
        result = run("check_dataset.py", "--hr", "HR", "--lr", "LR", "--scale", scale, folder=tmp_path)
        assert result.returncode == 3
        assert "problem: HR/a.png is gray, but LR/a.png is in colour" in result.stdout
