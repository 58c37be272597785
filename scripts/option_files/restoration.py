"""DCKD's Tables 3 and 4: deblurring and deraining."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from option_files.common import HEADER, LABELS, MODELS, indented


@dataclass(frozen=True)
class Task:
    """A restoration task at scale 1.

    Attributes:
        name: in names of files.
        label: in comments.
        training: lines of the training data's place.
        validation: name and folder of what is validated on.
        tests: names and folders of what is tested on.
        settings: of the metrics.
    """

    name: str
    label: str
    training: tuple[str, ...]
    validation: tuple[str, str]
    tests: tuple[tuple[str, str], ...]
    settings: str


_GOPRO = Task(
    "gopro",
    "deblurring GoPro",
    (
        "name: GoPro",
        "dataroot_gt: datasets/GoPro/train_crops/sharp",
        "dataroot_lq: datasets/GoPro/train_crops/blur",
    ),
    ("GoPro", "datasets/GoPro/test"),
    (("GoPro", "datasets/GoPro/test"),),
    "crop_border: 0",
)
_RAIN = Task(
    "rain13k",
    "deraining",
    (
        "name: Rain13k",
        "dataroot_gt: datasets/Rain13k/train/target",
        "dataroot_lq: datasets/Rain13k/train/input",
        "extend_small: true        # some images are smaller than the largest patches",
    ),
    ("Rain100L", "datasets/Rain13k/test/Rain100L"),
    tuple(
        (name, f"datasets/Rain13k/test/{name}") for name in ("Test100", "Rain100H", "Rain100L", "Test2800", "Test1200")
    ),
    "crop_border: 0, test_y_channel: true",
)
_FOLDERS = {"gopro": ("sharp", "blur"), "rain13k": ("target", "input")}
_PATCHES = {
    "nafnet": (
        "gt_size: 256",
        "use_rot: true             # as its authors; the flips of DCKD's appendix are Restormer's",
        "batch_size_per_gpu: 32    # in all; on four GPUs, 8",
    ),
    "restormer": (
        "gt_size: 384              # the largest patches",
        "batch_size_per_gpu: 64    # in all, at the start; on eight GPUs, 8",
        "gt_sizes: [128, 160, 192, 256, 320, 384]",
        "mini_batch_sizes: [64, 40, 32, 16, 8, 8]   # in all; on eight GPUs, [8, 5, 4, 2, 1, 1]",
        "iters: [92000, 64000, 48000, 36000, 36000, 24000]",
    ),
}
_RESTORERS = (
    ("nafnet", "NAFNet", _GOPRO, "DCKD's Table 3", "NAFNet-GoPro-width32.pth"),
    ("restormer", "Restormer", _GOPRO, "DCKD's Table 3", "motion_deblurring.pth"),
    ("restormer", "Restormer", _RAIN, "DCKD's Table 4", "deraining.pth"),
)
_RESTORATION_METHODS = ("scratch", "kd", "dckd")


def training_files() -> Iterator[tuple[str, str]]:
    """Names and contents of the training files of DCKD's Tables 3 and 4."""
    for network, label, task, table, weights in _RESTORERS:
        where = f"{label}, {task.label}"
        purpose = f"The teacher of {where} ({table}), where its published weights are not at hand."
        yield f"teacher_{network}_{task.name}", _restoration_file(network, task, "scratch", purpose, None)
        for piece in _RESTORATION_METHODS:
            purpose = f"Row {LABELS[piece]} of {where}, in {table}."
            yield f"{piece}_{network}_{task.name}", _restoration_file(network, task, piece, purpose, weights)


def _restoration_file(network: str, task: Task, piece: str, purpose: str, weights: str | None) -> str:
    """A training file; `weights` are the teacher's, None for the teacher's own training."""
    sharp, given = _FOLDERS[task.name]
    name, folder = task.validation
    own = "student" if weights is not None else "teacher"
    taught = weights is not None and piece != "scratch"
    schedule = "restormer_authors" if (network, own) == ("restormer", "teacher") else network
    lines = [
        HEADER + f"# {purpose}",
        f"_base_: [../base/runtime.yml, ../base/{schedule}_schedule.yml, ../methods/{piece}.yml]",
        f"name: {piece if weights is not None else 'teacher'}_{network}_{task.name}",
        "scale: 1",
        "",
        "datasets:",
        "  train:",
        "    _base_: ../base/restoration.yml",
        *indented(indented([*task.training, *_PATCHES[network]])),
        "  val:",
        "    _base_: ../base/benchmark.yml",
        "    filename_tmpl: '{}'",
        f"    name: {name}",
        f"    dataroot_gt: {folder}/{sharp}",
        f"    dataroot_lq: {folder}/{given}",
        "",
        "network_g:" + "                    # the student" * taught,
        f"  _base_: ../networks/{network}_{own}.yml",
    ]
    if taught:
        lines += ["network_t:                    # the teacher, frozen", f"  _base_: ../networks/{network}_teacher.yml"]
    lines += ["", "path:"]
    if taught:
        lines += [f"  pretrain_network_t: experiments/pretrained_models/{weights}", "  strict_load_t: true"]
    lines += [
        "  pretrain_network_g: ~",
        "  resume_state: ~",
        "",
        "val:",
        "  val_freq: 5e3",
        "  save_img: false",
        "  metrics:",
        f"    psnr: {{type: calculate_psnr, {task.settings}}}",
        f"    ssim: {{type: calculate_ssim, {task.settings}}}",
        "",
    ]
    return "\n".join(lines)


def test_files() -> Iterator[tuple[str, str]]:
    """Names and contents of the files for test.py of DCKD's Tables 3 and 4."""
    for network, label, task, table, weights in _RESTORERS:
        sharp, given = _FOLDERS[task.name]
        lines = [
            HEADER + f"# {table}: {label}, {task.label}. What is not trained yet is left out.",
            f"name: {network}_{task.name}",
            "scale: 1",
            "num_gpu: auto                 # auto | 0 (CPU) | n",
            "skip_missing: true            # a dataset or network that is not there is named and left out",
            "",
            "datasets:",
        ]
        for number, (name, folder) in enumerate(task.tests, 1):
            lines += [
                f"  test_{number}:",
                "    _base_: ../base/benchmark.yml",
                "    filename_tmpl: '{}'",
                f"    name: {name}",
                f"    dataroot_gt: {folder}/{sharp}",
                f"    dataroot_lq: {folder}/{given}",
            ]
        lines += ["", "networks:                     # a row of the table each"]
        rows = [("teacher", "teacher", f"experiments/pretrained_models/{weights}")]
        rows += [(piece, "student", MODELS.format(f"{piece}_{network}_{task.name}")) for piece in _RESTORATION_METHODS]
        for row, size, path in rows:
            lines += [
                f"  {row}:",
                f"    network: {{_base_: ../networks/{network}_{size}.yml}}",
                f"    path: {path}",
            ]
        lines += [
            "",
            "val:",
            "  metrics:",
            f"    psnr: {{type: calculate_psnr, {task.settings}}}",
            f"    ssim: {{type: calculate_ssim, {task.settings}}}",
            "",
            "report:",
            f"  published: {label}".ljust(30) + "# published figures beside ours; ~ for ours alone",
            "",
        ]
        yield f"{network}_{task.name}", "\n".join(lines)
