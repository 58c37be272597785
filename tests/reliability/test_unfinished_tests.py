"""test.py looks at all images before the first figure, and keeps figures that are finished, whatever comes after."""

from __future__ import annotations

import errno
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest

import basicsr.test as testing
from basicsr.config.load import load_options
from basicsr.config.warnings import unused_in_testing
from basicsr.engine import validation
from basicsr.files.csv_files import read_csv
from basicsr.test import test_pipeline as run_test
from basicsr.utils.errors import DataError, OptionsError

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "upscale": 2}
TRAIN = {"name": "a", "type": "PairedImageDataset", "dataroot_gt": "hr", "dataroot_lq": "lr"}


@pytest.fixture
def options(image_pairs) -> dict[str, Any]:
    """Bicubic interpolation on two sets: Set5 of four images, and Mine of two."""
    datasets = {}
    for key, (name, count) in {"test_1": ("Set5", 4), "test_2": ("Mine", 2)}.items():
        gt, lq = image_pairs(scale=2, count=count, size=24, folder=name)
        block = {"name": name, "type": "PairedImageDataset", "dataroot_gt": str(gt), "dataroot_lq": str(lq)}
        datasets[key] = {**block, "filename_tmpl": "{}x2", "io_backend": {"type": "disk"}}
    return {
        "name": "t",
        "scale": 2,
        "num_gpu": 0,
        "datasets": datasets,
        "networks": {"bicubic": {"type": "bicubic"}, "again": {"type": "bicubic"}},
        "val": {"metrics": {"psnr": {"type": "calculate_psnr"}}},
        "report": {"speed": False, "plots": False},
    }


def spoil(options: dict[str, Any], key: str) -> Path:
    path = Path(options["datasets"][key]["dataroot_lq"]) / "img001x2.png"
    path.unlink()
    path.symlink_to("gone.png")
    return path


def test_all_images_of_all_sets_are_looked_at_before_the_first_figure(options, tmp_path):
    paths = [spoil(options, key) for key in ("test_1", "test_2")]
    with pytest.raises(DataError) as caught:
        run_test(options, root=tmp_path)
    assert all(f"{path}: No such file or directory" in str(caught.value) for path in paths)
    assert "1 of 4 images of dataset Set5" in str(caught.value) and "1 of 2 images of dataset Mine" in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_check_images_full_decodes_in_testing_too(options, tmp_path):
    path = Path(options["datasets"]["test_2"]["dataroot_gt"]) / "img000.png"
    options["datasets"]["test_2"]["check_images"] = "full"
    data = path.read_bytes()
    start = data.index(b"IDAT") - 4  # a chunk whose checksum is right and whose pixels are not all there
    length = int.from_bytes(data[start : start + 4], "big")
    body = data[start + 4 : start + 8] + data[start + 8 : start + 8 + length // 2]
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    path.write_bytes(data[:start] + chunk + data[start + 12 + length :])
    with pytest.raises(DataError, match="1 of 2 images of dataset Mine cannot be used"):
        run_test(options, root=tmp_path)
    assert not (tmp_path / "results").exists()


def test_evaluation_never_skips_and_says_so(options):
    options["datasets"]["test_2"]["skip_bad_images"] = 1
    with pytest.raises(OptionsError, match=r"datasets\.test_2\.skip_bad_images: is of training only, got 1"):
        load_options(options, training=False)


def test_what_is_accepted_and_not_used_is_told(options, tmp_path):
    options |= {"amp": "bf16", "logger": {"print_freq": 5}, "networks": {"bicubic": {"type": "bicubic"}}}
    options["num_gpu"] = 99
    options["datasets"]["test_1"] |= {"num_worker_per_gpu": 2, "gt_size": 32, "prefetch_mode": "cuda"}
    run_test(options, root=tmp_path)
    log = next((tmp_path / "results/t").glob("*.log")).read_text()
    for name in ("amp", "logger", *(f"datasets.test_1.{key}" for key in ("num_worker_per_gpu", "gt_size"))):
        assert name in next(line for line in log.splitlines() if "not used in testing" in line)
    assert "amp: bf16 is of training; the networks run in float32" in log
    assert "WARNING: num_gpu is 99" in log


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"path": {"pretrain_network_g": "a.pth", "strict_load_g": False}},
            "path.pretrain_network_g, path.strict_load_g",
        ),
        ({"path": {"pretrain_network_t": "a.pth", "resume_state": None}}, "path.pretrain_network_t"),
        ({"network_g": EDSR, "manual_seed": 3}, "manual_seed, network_g"),
        ({"datasets": {"train": TRAIN}}, "datasets.train"),
        ({"report": {"plots": False, "crops": 3, "html": False, "images": 0}}, "report.crops"),
        ({"path": {"results_root": "elsewhere", "resume_state": None}}, None),
    ],
)
def test_what_networks_and_testing_have_no_use_for_is_told(options, given, told):
    datasets = options["datasets"] | given.pop("datasets", {})
    loaded = load_options({**options, "datasets": datasets, **given}, training=False, paths=False)
    assert unused_in_testing(loaded) == ([f"not used in testing: {told}"] if told else [])


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), RuntimeError("a bug"), None]
)
def test_finished_figures_are_kept_and_marked(options, tmp_path, monkeypatch, error):
    evaluate, calls = validation.evaluate, []

    def failing(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # the second network's second set; None is what a signal between images leads to
            if error is None:
                return None
            raise error
        return evaluate(*arguments, **named)

    monkeypatch.setattr(validation, "evaluate", failing)
    with pytest.raises(type(error) if error is not None else testing.Interrupted):
        run_test(options, root=tmp_path)
    folder = tmp_path / "results/t"
    rows = read_csv(folder / "metrics.csv")
    kept = {(row["network"], row["dataset"]) for row in rows}
    assert kept == {("bicubic", "Set5"), ("bicubic", "Mine"), ("again", "Set5")}
    for name in ("summary.md", "tables.tex", "report.html"):
        text = (folder / name).read_text()
        assert "INCOMPLETE" in text and "the test ended early" in text, name
    assert "averages finished before the test ended: 3;" in next(folder.glob("*.log")).read_text()


def test_a_test_that_is_killed_leaves_the_tables_of_what_it_finished(options, tmp_path, monkeypatch):
    """What stands on the disk after each set is what a killed process leaves."""
    left, keep = [], testing._Report.keep

    def looking(report: Any) -> None:
        keep(report)
        left.append(
            ((tmp_path / "results/t/summary.md").read_text(), len(read_csv(tmp_path / "results/t/metrics.csv")))
        )

    monkeypatch.setattr(testing._Report, "keep", looking)
    run_test(options, root=tmp_path)
    assert [lines for _, lines in left] == [8, 12, 20, 24]
    assert all("INCOMPLETE: the test has not come to its end" in text for text, _ in left)
    assert "INCOMPLETE" not in (tmp_path / "results/t/summary.md").read_text()


def test_tables_say_how_many_images_and_warn_where_a_benchmark_has_another_number(options, tmp_path):
    run_test(options, root=tmp_path)
    warning = "x2: WARNING: Set5: 4 images here, Set5 has 5: figures are not its own."
    for name in ("summary.md", "tables.tex", "report.html"):
        text = (tmp_path / "results/t" / name).read_text()
        assert "Images: Set5 4, Mine 2." in text and warning in text, name
    assert "Set5: 4 images here" in next((tmp_path / "results/t").glob("*.log")).read_text()
    for role in ("dataroot_gt", "dataroot_lq"):
        folder = Path(options["datasets"]["test_1"][role])
        first = min(folder.iterdir())
        shutil.copy(first, first.with_name(first.name.replace("img000", "img004")))
    run_test(options, root=tmp_path / "whole")
    assert "WARNING" not in (tmp_path / "whole/results/t/summary.md").read_text()
