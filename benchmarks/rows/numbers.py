"""Whether the fast mode trains networks as good as float32's: the same run twice, measured in float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from basicsr.files.images import imfrombytes
from basicsr.utils.errors import DataError
from basicsr.utils.matlab_functions import imresize_integer
from basicsr.utils.timing import Spread
from benchmarks.bench import Bench
from benchmarks.options import FAST, PLAIN, shipped_options
from benchmarks.table import Detail, Outcome, Report, Target
from benchmarks.training import history, train, write_options

SCALE, ITERATIONS, TEACHER_ITERATIONS = 2, 2000, 1000
RATE, EMA_DECAY = 5e-4, 0.99  # at the quickstart's 2e-3, rounding alone moves the end by hundredths of a dB
SETS = ("Set5", "Set14")
FLOAT32, FLOAT32_AGAIN = "float32", "float32, other layout"
MODES: Mapping[str, Mapping[str, Any]] = {FLOAT32: {**PLAIN, "channels_last": True}, FLOAT32_AGAIN: PLAIN, "fast": FAST}


def numbers(bench: Bench) -> Report:
    """PSNR of the students of runs that differ by their precision alone, each the moving average of its weights.

    How far two float32 runs differ that add up in another order, since their tensors are laid out otherwise, says what
    of it is chance.
    """
    iterations = (12, 12) if bench.quick else (TEACHER_ITERATIONS, ITERATIONS)
    images = _training_pairs(bench)
    teacher = _run(bench, "quickstart_teacher", images, iterations[0], PLAIN, "teacher")
    weights = teacher.parent / "experiments/quickstart_teacher/models/net_g_latest.pth"
    figures = {}
    for mode, changes in MODES.items():
        path = _run(
            bench,
            "quickstart_mcadkd",
            images,
            iterations[1],
            changes,
            mode.replace(", ", "_").replace(" ", "_"),
            weights,
        )
        figures[mode] = _last_figures(path)
    differences = {name: figures["fast"][name] - figures[FLOAT32][name] for name in SETS}
    worst = max(differences.values(), key=abs)
    chance = max(abs(figures[FLOAT32_AGAIN][name] - figures[FLOAT32][name]) for name in SETS)
    header = ("set", *(f"{mode}, dB" for mode in MODES), "fast - float32, dB")
    lines = tuple(
        (name, *(f"{figures[mode][name]:.4f}" for mode in MODES), f"{difference:+.4f}")
        for name, difference in differences.items()
    )
    outcome = Outcome(
        row="numbers",
        what=f"PSNR after {iterations[1]} iterations, fast mode against float32, largest difference",
        figure=Spread(abs(worst), abs(worst), abs(worst)),
        target=Target("at most", 0.02, " dB"),
        remark=f"one seed; two float32 runs of other layouts differ by up to {chance:.4f} dB",
    )
    return Report((outcome,), (Detail("PSNR on Y of the students, run in float32:", header, lines),))


def _run(
    bench: Bench,
    file: str,
    images: Path,
    iterations: int,
    changes: Mapping[str, Any],
    name: str,
    teacher: Path | None = None,
) -> Path:
    """Trains and returns the options' path."""
    options = shipped_options(file, images, 8, num_gpu=0, **changes)
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    options["train"].update(total_iter=iterations)
    options["train"]["scheduler"].update(T_max=iterations, eta_min=1e-6)
    options["train"]["optim_g"].update(lr=RATE)
    options["logger"].update(print_freq=max(1, iterations // 10), save_checkpoint_freq=iterations)
    if teacher is not None:
        options["train"]["ema_decay"] = EMA_DECAY
        options["path"] = {"pretrain_network_t": str(teacher)}
        metric = {"type": "calculate_psnr", "crop_border": SCALE, "test_y_channel": True}
        options["val"] = {"val_freq": iterations, "metrics": {"psnr": metric}}
        for number, dataset in enumerate(SETS, start=1):
            options["datasets"][f"val_{number}"] = benchmark_set(bench.benchmark.absolute() / dataset, dataset)
    path = write_options(bench.folder / f"numbers_{name}", options)
    train(path, bench.threads)
    return path


def benchmark_set(folder: Path, name: str, scale: int = SCALE) -> dict[str, Any]:
    """A dataset's block for a folder with HR and LR_bicubic/X2."""
    return {
        "name": name,
        "type": "PairedImageDataset",
        "dataroot_gt": str(folder / "HR"),
        "dataroot_lq": str(folder / f"LR_bicubic/X{scale}"),
        "filename_tmpl": f"{{}}x{scale}",
        "io_backend": {"type": "disk"},
    }


def _last_figures(options: Path) -> dict[str, float]:
    """PSNR by data set of a run's last validation, which is in float32 always."""
    metrics = [
        line for line in history(options, "quickstart_mcadkd") if any(key.startswith("metrics/") for key in line)
    ]
    return {name: float(metrics[-1][f"metrics/{name}/psnr"]) for name in SETS}


def _training_pairs(bench: Bench) -> Path:
    """Photographs and their MATLAB-bicubic reductions as PNG.

    Raises:
        DataError: there are no photographs.
    """
    folder = bench.folder / "photographs"
    found = sorted(path for path in bench.training_images.glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not found:
        raise DataError(f"--training-images: there are no PNG or JPEG files in {bench.training_images}")
    for name in ("HR", "LR"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for path in found[:4] if bench.quick else found:
        image = imfrombytes(path.read_bytes(), source=str(path))
        height, width = (side - side % SCALE for side in image.shape[:2])
        hr = image[:height, :width]
        cv2.imwrite(str(folder / "HR" / f"{path.stem}.png"), hr)
        cv2.imwrite(str(folder / "LR" / f"{path.stem}.png"), imresize_integer(hr, 1 / SCALE))
    return folder


ROWS = {"numbers": numbers}
