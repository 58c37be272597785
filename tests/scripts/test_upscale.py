"""scripts/upscale.py as a command, by a network that repeats each pixel: what comes out is known exactly."""

from __future__ import annotations

import importlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from support.networks import nearest_edsr, save_checkpoint
from support.processes import start

from basicsr.archs import build_network
from basicsr.engine.process.command import run_command
from basicsr.files.band_files import as_type, bands_from_bytes, write_bands
from basicsr.utils import pass_times

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "scripts/upscale.py")


@pytest.fixture(scope="module")
def upscale():
    return importlib.import_module("upscale")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a network for x2, and photos in it; the current one."""
    monkeypatch.chdir(tmp_path)
    network, block = nearest_edsr(2)
    save_checkpoint(tmp_path / "x2.pth", network, block, 2)
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(("a.png", "b.png")):
        Image.fromarray(noise(number)).save(tmp_path / "photos" / name)
    return tmp_path


def noise(seed: int, height: int = 12, width: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def repeated(array: np.ndarray, scale: int = 2) -> np.ndarray:
    return array.repeat(scale, axis=0).repeat(scale, axis=1)


@pytest.fixture
def run(upscale, here, capsys):
    """Runs the command here; returns exit code, lines printed, and lines of errors."""

    def call(*arguments: object, model: str = "x2.pth", output: str = "out"):
        command = [*map(str, arguments), "--model", model, "--output", output, "--device", "cpu"]
        code = run_command(lambda: upscale.main(command))
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out.splitlines(), printed.err.splitlines()

    return call


def test_a_slow_precision_is_warned_of_with_its_factor(run, monkeypatch):
    monkeypatch.setattr(pass_times, "times_of_network", lambda *given: pass_times.PassTimes((1.0,), (7.0,)))
    monkeypatch.setattr(pass_times, "has_units", lambda *given: False)
    _, _, errors = run("photos/a.png", "--precision", "bf16")
    assert any("warning: --precision bf16 is slow here: it takes 7.00 times as long" in line for line in errors)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_decoders_print_nothing_of_their_own_about_damage(here):
    picture = np.random.default_rng(0).integers(0, 65536, (40, 40, 3), dtype=np.uint16)
    for name, array in (("deep.tif", picture), ("flat.tif", picture.astype(np.uint8))):
        cv2.imwrite(str(here / "photos" / name), array, [cv2.IMWRITE_TIFF_COMPRESSION, 5])  # LZW
        content = bytearray((here / "photos" / name).read_bytes())
        content[600:900] = bytes(300)
        (here / "photos" / name).write_bytes(content)
    command = [sys.executable, SCRIPT, "--model", "x2.pth", "photos", "--output", "out", "--device", "cpu"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error"] * len(lines)
    assert 0 < len(lines) == 4 - len(files(here / "out"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_resolution_that_no_format_can_hold_is_left_out(run, here, dtype):
    picture = noise(0).astype(dtype)
    tifffile.imwrite(here / "huge.tif", picture, photometric="rgb", resolution=(4_000_000_000, 70_000))
    for output_format in ("png", "tif", *(("jpg", "webp") if dtype is np.uint8 else ())):
        code, lines, errors = run("huge.tif", "--format", output_format)
        assert (code, lines[-1], errors) == (0, "1 upscaled, 0 failed", [])
        result = Image.open(here / f"out/huge_x2.{output_format}")
        assert (result.info.get("dpi") or (0,))[0] <= 72  # what readers say where a file says nothing
        assert 282 not in result.getexif()


def test_as_a_command_a_folder_is_upscaled_and_each_picture_said(here):
    command = [sys.executable, SCRIPT, "--model", "x2.pth", "photos", "--output", "out"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("x2.pth: EDSR x2 (")
    assert [line.rpartition(", ")[0] for line in lines[1:3]] == [
        "photos/a.png: 16x12 -> 32x24",
        "photos/b.png: 16x12 -> 32x24",
    ]
    assert lines[3:] == ["2 upscaled, 0 failed"]
    assert result.stderr == ""
    for number, name in enumerate(("a", "b")):
        assert np.array_equal(np.asarray(Image.open(here / f"out/{name}_x2.png")), repeated(noise(number)))


def test_interrupted_it_leaves_whole_pictures_and_says_one_line(here):
    for number in range(40):
        Image.fromarray(noise(number, 200, 300)).save(here / f"photos/{number:03d}.png")
    command = [sys.executable, SCRIPT, "--model", "x2.pth", "photos", "--output", "out", "--self_ensemble"]
    process = start(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(list(here.glob("out/*.png"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors) == (130, "interrupted\n")
    made = files(here / "out")
    assert 3 <= len(made) < 42
    assert all(name.endswith("_x2.png") and not name.startswith(".") for name in made)
    for name in made:
        Image.open(here / "out" / name).load()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_bars_count_pictures_and_tiles(run, here, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert run("photos", "--tile", "8")[0] == 0
    shown = terminal.getvalue()
    assert "files: 100%" in shown and "2/2" in shown
    assert all(f"{done}/4" in shown for done in range(1, 5))  # 16x12 pixels in tiles of 8


def test_a_network_that_puts_out_no_numbers_fails_by_name(run, here):
    network, block = nearest_edsr(2)
    network.conv_last.weight.data.fill_(3e38)  # finite, as every file's weights must be; its output is not
    save_checkpoint(here / "nan.pth", network, block, 2)
    code, lines, errors = run("photos", model="nan.pth")
    assert (code, lines[-1]) == (3, "0 upscaled, 2 failed")
    assert errors[0].startswith("error: photos/a.png: EDSR puts out numbers that are not finite")
    assert files(here / "out") == []


def test_files_folders_and_patterns_mix_and_each_is_done_once(run, here):
    (here / "more/deep").mkdir(parents=True)
    Image.fromarray(noise(5)).save(here / "more/deep/c.png")
    code, lines, errors = run("photos/b.png", "photos", "more/**/*.png", "photos/*.png")
    assert (code, lines[-1], errors) == (0, "3 upscaled, 0 failed", [])
    assert files(here / "out") == ["a_x2.png", "b_x2.png", "deep/c_x2.png"]


def test_pictures_of_a_folder_that_are_not_taken_are_told(run, here):
    for below in ("photos/deep/er", "photos/out"):
        (here / below).mkdir(parents=True)
        Image.fromarray(noise(5)).save(here / below / "c.png")
    (here / "photos/live.heic").touch()
    ending = "warning: photos: 1 file (live.heic) in it not read, because of the ending; convert to PNG"
    _, lines, errors = run("photos", output="photos/out")
    assert lines[-1] == "2 upscaled, 0 failed"
    assert errors == [
        "warning: photos: 1 folder (deep: 1) in it, with pictures, not read; --recursive takes them", ending
    ]  # fmt: skip
    _, lines, errors = run("photos", "--recursive")
    assert (errors, files(here / "out")[-1]) == ([ending], "out/c_x2.png")


def test_broken_files_are_told_and_the_rest_is_done(run, here):
    whole = (here / "photos/a.png").read_bytes()
    (here / "photos/cut.png").write_bytes(whole[:-40])
    (here / "photos/empty.png").touch()
    (here / "photos/text.png").write_text("no picture")
    Image.fromarray(noise(1, 64, 64)).save(here / "photos/torn.jpg")
    (here / "photos/torn.jpg").write_bytes((here / "photos/torn.jpg").read_bytes()[:-300])
    (here / "photos/z.png").write_bytes(whole)
    (here / "photos/folder.png").mkdir()
    os.symlink("/proc/self/mem", here / "photos/unreadable.png")
    code, lines, errors = run("photos", "--suffix", "_large")
    assert code == 3
    assert lines[-1] == "3 upscaled, 5 failed"
    assert files(here / "out") == ["a_large.png", "b_large.png", "z_large.png"]
    assert [line.partition(": ")[2].partition(":")[0] for line in errors] == [
        f"cannot read image photos/{name}"
        for name in ("cut.png", "empty.png", "text.png", "torn.jpg", "unreadable.png")
    ]
    assert all(line.startswith("error: ") for line in errors)


@pytest.mark.parametrize(
    "arguments, code, line",
    [
        (("photos", "--scale", "4"), 2, "error: --scale 4, but x2.pth is EDSR for x2; leave --scale out or give"),
        (("photos/missing.png",), 3, "error: photos/missing.png does not exist"),
        (("photos", "nothing/*.png"), 3, "error: pattern 'nothing/*.png' matches no file"),
        (("empty",), 3, "error: folder empty holds no picture"),
        (("photos", "--quality", "80"), 2, "error: --quality is for --format jpg and webp"),
        (("photos", "--quality", "0", "--format", "jpg"), 2, "error: --quality 0: give a number from 1 to 100"),
        (("photos", "--suffix", "/x"), 2, "error: --suffix /x leads into another folder"),
        (("photos", "--tile", "-1"), 2, "error: --tile -1: give 8 or more, or 0"),
        (("photos", "--tile", "7"), 2, "error: --tile 7: give 8 or more, or 0"),
        (("photos", "--tile_overlap", "-1"), 2, "error: --tile_overlap -1: give 0 or more"),
        (("photos", "--suffix", "_{scal}"), 2, "error: --suffix _{scal}: in braces there may be {scale} only"),
        (("photos", "--param_key", "ema"), 4, "error: checkpoint x2.pth has no weights 'ema', it has params"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_written(run, here, arguments, code, line):
    (here / "empty").mkdir()
    found, _, errors = run(*arguments)
    assert found == code
    assert len(errors) == 1
    assert errors[0].startswith(line)
    assert not (here / "out").exists()


def test_a_file_that_is_no_network_is_told_in_one_line(run, here):
    for model in ("missing.pth", "photos/a.png"):
        code, _, errors = run("photos", model=model)
        assert (code, len(errors)) == (4, 1)
        assert model in errors[0]


def test_a_network_for_one_size_is_refused(run, here):
    block = {"type": "SwinIR", "upscale": 2, "img_size": 16, "window_size": 8, "depths": [1], "num_heads": [2]}
    block |= {"embed_dim": 4, "upsampler": "pixelshuffledirect", "ape": True}
    save_checkpoint(here / "ape.pth", build_network(block), block, 2)
    code, _, errors = run("photos", model="ape.pth")
    assert (code, len(errors)) == (4, 1)
    assert errors[0].startswith("error: ape.pth takes images of 16x16 pixels only")


def test_an_output_that_is_no_folder_is_told_in_one_line(run, here):
    code, _, errors = run("photos", output="")
    assert (code, errors) == (2, ["error: --output '': give a folder for the results; . is the present one"])
    (here / "out").write_text("a file")
    code, _, errors = run("photos")
    assert (code, len(errors)) == (3, 1)
    assert errors[0].startswith("error: cannot make the folder --output out: there is a file of this name")


def test_the_result_never_overwrites_the_picture(run, here):
    before = (here / "photos/a.png").read_bytes()
    code, _, errors = run("photos/a.png", "--suffix", "", output="photos")
    assert code == 3
    assert "would overwrite photos/a.png" in errors[0]
    assert (here / "photos/a.png").read_bytes() == before


def test_existing_results_are_overwritten_or_skipped(run, here):
    run("photos")
    (here / "out/a_x2.png").write_bytes(b"old")
    (here / "out/b_x2.png").unlink()
    code, lines, _ = run("photos", "--skip_existing")
    assert (code, lines[-1]) == (0, "1 upscaled, 0 failed, 1 skipped (there already)")
    assert (here / "out/a_x2.png").read_bytes() == b"old"
    assert run("photos")[1][-1] == "2 upscaled, 0 failed"
    assert np.array_equal(np.asarray(Image.open(here / "out/a_x2.png")), repeated(noise(0)))


def test_a_second_run_into_the_same_folder_does_the_same(run, here):
    run("photos", output="photos")
    code, lines, _ = run("photos", output="photos")
    assert code == 0
    assert lines[-2:] == ["2 left out: results of an earlier run", "2 upscaled, 0 failed"]
    assert files(here / "photos") == ["a.png", "a_x2.png", "b.png", "b_x2.png"]


def test_a_full_disk_ends_the_run_with_one_line_and_nothing_half_written(run, here):
    resource = pytest.importorskip("resource")
    Image.fromarray(noise(3, 100, 100)).save(here / "photos/aa.png")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        code, _, errors = run("photos")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 3
    assert len(errors) == 1
    assert errors[0].startswith("error: cannot write out/aa_x2.png: File too large; make room or choose another")
    assert files(here / "out") == ["a_x2.png"]


def test_a_picture_too_large_for_the_machine_or_the_format_is_refused_and_the_rest_done(run, here, monkeypatch):
    (here / "photos/huge.ppm").write_bytes(b"P6 32768 32768 255\n")
    sizes = {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    code, lines, errors = run("photos")
    assert (code, lines[-1]) == (3, "2 upscaled, 1 failed")
    assert errors[0].startswith(
        "error: photos/huge.ppm of 32768x32768 needs 36.0 GB to be upscaled x2, this machine has 4.0 GB of memory"
    )
    code, lines, errors = run("photos", "--format", "webp")
    assert (code, lines[-1]) == (3, "2 upscaled, 1 failed")
    assert errors[0].startswith("error: photos/huge.ppm would become 65536x65536, webp allows at most 16383")


def test_a_photograph_stands_upright_with_all_it_carries(run, here):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[274], exif[271] = 6, "Maker"
    Image.fromarray(noise(0)).save(here / "turned.png", exif=exif, icc_profile=profile, dpi=(300, 300))
    code, lines, _ = run("turned.png")
    assert code == 0
    assert lines[1].startswith("turned.png: 12x16 -> 24x32, ")
    image = Image.open(here / "out/turned_x2.png")
    assert np.array_equal(np.asarray(image), repeated(np.rot90(noise(0), -1)))
    assert (image.getexif()[274], image.getexif()[271]) == (1, "Maker")
    assert image.info["icc_profile"] == profile
    assert [round(dots) for dots in image.info["dpi"]] == [300, 300]


def test_gray_alpha_and_16_bits_stay_and_notes_are_said(run, here):
    deep = np.random.default_rng(0).integers(1, 65536, (9, 7, 4), dtype=np.uint16)
    cv2.imwrite("deep.png", deep)
    Image.fromarray(noise(1, channels=1)[..., 0]).save("gray.png")
    frames = [Image.fromarray(noise(number)) for number in range(3)]
    frames[0].save("moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    code, lines, _ = run("deep.png", "gray.png", "moving.webp", "--tile", "8", "--self_ensemble")
    assert code == 0
    assert np.array_equal(cv2.imread("out/deep_x2.png", cv2.IMREAD_UNCHANGED), repeated(deep))
    gray = Image.open("out/gray_x2.png")
    assert gray.mode == "L"
    assert np.array_equal(np.asarray(gray), repeated(noise(1, channels=1)[..., 0]))
    assert lines[3].endswith(" s; only the first of its 3 frames")
    code, lines, errors = run("deep.png", "gray.png", "--format", "jpg")
    assert (code, lines[-1]) == (3, "1 upscaled, 1 failed")
    assert errors == ["error: deep.png has 16 bits a channel, jpg allows 8; use --format png or tif"]


@pytest.mark.parametrize("output_format, name", [("jpg", "JPEG"), ("webp", "WEBP"), ("tif", "TIFF")])
def test_results_of_other_formats(run, here, output_format, name):
    assert run("photos/a.png", "--format", output_format)[0] == 0
    with Image.open(here / f"out/a_x2.{output_format}") as image:
        assert (image.format, image.size) == (name, (32, 24))


def test_a_network_for_gray_images_and_another_scale(run, here):
    network, block = nearest_edsr(3, 1)
    save_checkpoint(here / "gray.pth", network, block, 3)
    Image.fromarray(noise(0)[..., 0]).save("gray.png")
    assert run("gray.png", "photos/a.png", "--scale", 3, model="gray.pth")[0] == 0
    assert np.array_equal(np.asarray(Image.open(here / "out/gray_x3.png")), repeated(noise(0)[..., 0], 3))
    assert Image.open(here / "out/a_x3.png").mode == "RGB"


def test_bf16_differs_by_little(run, here):
    """Eight significant bits on features of 0 to 255: at most one level, since the last convolution is float32."""
    assert run("photos/a.png", "--precision", "bf16")[0] == 0
    found = np.asarray(Image.open(here / "out/a_x2.png")).astype(int)
    assert np.abs(found - repeated(noise(0))).max() <= 1


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
@pytest.mark.skipif(os.name == "nt", reason="needs names with control characters")
def test_control_characters_of_names_reach_no_terminal(run, here):
    """As they do from photographs of strangers: colours, a carriage return, a new line."""
    whole = (here / "photos/a.png").read_bytes()
    for name, content in (("\x1b[31mred.png", whole), ("new\nline.png", b"none"), ("back\r.png", whole[:-40])):
        (here / "photos" / name).write_bytes(content)
    code, lines, errors = run("photos")
    assert (code, lines[-1]) == (3, "3 upscaled, 2 failed")
    assert all(line.isprintable() for line in [*lines, *errors])
    assert any(line.startswith("photos/\\x1b[31mred.png: 16x12") for line in lines)
    code, _, errors = run("photos/no\x07.png")
    assert (code, errors) == (3, [errors[0]])
    assert errors[0].startswith("error: photos/no\\x07.png does not exist")


def test_a_name_that_is_no_text_is_printed_escaped(run, here):
    os.rename("photos/a.png", b"photos/caf\xe9.png")
    code, lines, _ = run("photos")
    assert code == 0
    assert any(line.startswith("photos/caf\\udce9.png: 16x12 -> 32x24") for line in lines)
    assert os.path.exists(b"out/caf\xe9_x2.png")


@pytest.mark.parametrize(("suffix", "dtype"), [(".tif", np.uint16), (".tif", np.uint8), (".npy", np.float32)])
def test_images_of_several_bands_stay_what_they_are(run, here, suffix, dtype):
    network, block = nearest_edsr(2, channels=5)
    save_checkpoint(here / "bands.pth", network, block, 2)
    pixels = as_type(np.random.default_rng(0).uniform(0, 1, (9, 7, 5)), np.dtype(dtype))
    write_bands(here / f"bands/a{suffix}", pixels)
    code, lines, _ = run("bands", "--tile", 8, model="bands.pth")
    assert code == 0 and lines[-2].startswith(f"bands/a{suffix}: 7x9 -> 14x18")
    large = bands_from_bytes((here / f"out/a_x2{suffix}").read_bytes(), 5, "result")
    assert large.dtype == dtype
    np.testing.assert_allclose(large, repeated(pixels), atol=0 if dtype != np.float32 else 1e-6)
    code, lines, _ = run("bands", "--tile", 8, model="bands.pth", output="bands")
    before = sorted(here.glob("bands/*"))
    code, lines, _ = run("bands", "--tile", 8, model="bands.pth", output="bands")
    assert code == 0 and lines[-2:] == ["1 left out: results of an earlier run", "1 upscaled, 0 failed"]
    assert sorted(here.glob("bands/*")) == before

    code, _, errors = run("photos/a.png", model="bands.pth")
    assert code == 3 and errors[-1].endswith("photos/a.png: it is a PNG file; bands are read from TIFF and .npy files")
    code, _, errors = run("photos", model="bands.pth")
    assert code == 3 and "holds no picture and no video (.tif, .tiff, .npy)" in errors[-1]


def test_a_network_of_another_input_range_is_told_by_what_it_makes(run, here):
    network, block = nearest_edsr(2)
    with torch.no_grad():
        network.conv_last.bias.sub_(2 * network.img_range)
    save_checkpoint(here / "dark.pth", network, block, 2)
    _, sound, _ = run("photos/a.png", output="sound")
    code, lines, _ = run("photos/a.png", model="dark.pth", output="dark")
    assert code == 0 and not any("looks nothing like" in line for line in sound)
    mean = cv2.imread("photos/a.png").mean()  # the result is black, so this is the difference
    assert any(f"looks nothing like the picture (mean difference {mean:.0f} of 255)" in line for line in lines)
