"""scripts/compare_methods.py as a command: real trainings of tiny networks, interrupted, failing, and tabulated."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from support.processes import start

from basicsr.archs import build_network
from basicsr.config.load import load_options
from basicsr.engine.logs.run_log import RunStatus
from basicsr.engine.process.command import run_command
from basicsr.engine.resuming import refuse_new_start
from basicsr.files.run_history import read_history
from basicsr.utils.errors import OptionsError
from basicsr.utils.timing import Spread

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "scripts/compare_methods.py")
EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}
TEACHER = {**EDSR, "num_feat": 8}
PIXEL = {"type": "L1Loss", "loss_weight": 1.0}
PIECES: dict[str, dict[str, Any]] = {
    "scratch": {"model_type": "SRModel", "network_t": None, "train": {"pixel_opt": PIXEL}},
    "kd": {"model_type": "KDModel", "train": {"pixel_opt": PIXEL, "resp_kd_opt": PIXEL}},
    "diverging": {"train": {"pixel_opt": {**PIXEL, "loss_weight": 1e6}, "optim_g": {"type": "SGD", "lr": 100}}},
    "wider": {"network_g": {"num_feat": 6}, "train": {"pixel_opt": PIXEL}},
    "csd": {"train": {"pixel_opt": PIXEL, "distill": {"csd": {"type": "SharedCSD", "vgg_weights": "random"}}}},
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
ITERATIONS = 60


@pytest.fixture(scope="module")
def command():
    """The script as a module, and the packages beside it."""
    return importlib.import_module("compare_methods")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Runs compare bitwise only where they were computed with equally many threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """A folder with images, a base file, pieces of methods and the options of a teacher."""
    folder = tmp_path_factory.mktemp("bench")
    generator = np.random.default_rng(0)
    for phase, count in (("train", 4), ("val", 2)):
        for kind in ("HR", "LR"):
            (folder / phase / kind).mkdir(parents=True)
        for index in range(count):
            coarse = generator.uniform(0, 255, (5, 5, 3)).astype(np.float32)
            gt = np.clip(cv2.resize(coarse, (48, 48), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / phase / "HR" / f"{index}.png"), gt)
            lq = cv2.resize(gt, (24, 24), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(folder / phase / "LR" / f"{index}x2.png"), lq)
    for name, piece in PIECES.items():
        write(folder / "pieces" / f"{name}.yml", piece)
    write(folder / "base.yml", base(folder))
    own = {"name": "teacher", "network_g": TEACHER, "network_t": None, "path": {}}
    teacher = {**base(folder), **own}
    teacher["train"] = {**teacher["train"], "total_iter": 2, "pixel_opt": PIXEL}
    write(folder / "teacher.yml", {key: value for key, value in teacher.items() if value is not None})
    return folder


def test_progress_is_that_of_the_process_that_runs(command, tmp_path, bench):
    """A status of another process, which an earlier run has left, says nothing of this one."""
    records = importlib.import_module("study.records")
    given = {**base(bench), "name": "any", "path": {"experiments_root": str(tmp_path)}, "network_t": None}
    given["train"]["pixel_opt"] = PIXEL
    options = load_options(given, training=True)
    assert records.progress_of(options, 7) == 0
    options.experiment_folder.mkdir()
    status = RunStatus(options)
    status.begin(None)
    status.update(state="running", reached=4)
    assert (records.progress_of(options, os.getpid()), records.progress_of(options, os.getpid() + 1)) == (4, 0)
    status.tick(5)
    assert records.progress_of(options, os.getpid()) == 4, "written every few seconds at most"
    (options.experiment_folder / "models").mkdir()
    (options.experiment_folder / "training_states").mkdir()
    refuse_new_start(options)  # does not: nothing is saved, a run that is killed now begins anew by itself


def test_what_does_not_fit_is_told_before_any_training(command, bench, tmp_path, capsys, monkeypatch):
    """The second of two methods would have failed after the first was trained."""
    piece = {"model_type": "SRModel", "network_t": None,
             "train": {"pixel_opt": PIXEL, "adversarial_opt": {"type": "GANLoss", "gan_type": "vanilla"},
                       "optim_d": {"type": "Adam", "lr": 1e-3}},
             "network_d": {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 4}}  # fmt: skip
    method = write(tmp_path / "judged.yml", piece)
    monkeypatch.chdir(tmp_path)
    arguments = ["-opt", str(bench / "base.yml"), "--methods", str(bench / "pieces/scratch.yml"), str(method)]
    code = run_command(lambda: command.main([*arguments, "--seeds", "0", "--name", "unfit"]))
    message = capsys.readouterr().err
    assert (
        code == 2 and "error: method judged: network_d: VGGStyleDiscriminator takes 128x128 images, got 16x" in message
    )
    assert not list((tmp_path / "experiments").rglob("*.pth"))


def base(folder: Path) -> dict[str, Any]:
    def images(phase: str) -> dict[str, Any]:
        paths = {"dataroot_gt": str(folder / phase / "HR"), "dataroot_lq": str(folder / phase / "LR")}
        return {
            "name": f"{phase}_images",
            "type": "PairedImageDataset",
            "filename_tmpl": "{}x2",
            "io_backend": {"type": "disk"},
            **paths,
        }

    return {
        "scale": 2,
        "num_gpu": 0,
        "datasets": {"train": {**images("train"), "gt_size": 16, "batch_size_per_gpu": 2}, "val": images("val")},
        "network_g": EDSR,
        "network_t": TEACHER,
        "train": {"optim_g": {"type": "Adam", "lr": 1e-3}, "total_iter": ITERATIONS},
        "val": {"metrics": {"psnr": {"type": "calculate_psnr"}, "ssim": {"type": "calculate_ssim"}}},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 5},
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def study(bench: Path, methods: str, seeds: str, *more: str) -> list[str]:
    """Arguments of a study of these methods of PIECES."""
    files = [str(bench / "pieces" / f"{name}.yml") for name in methods.split()]
    return ["-opt", str(bench / "base.yml"), "--methods", *files, "--seeds", *seeds.split(), "--name", "trial", *more]


@pytest.fixture(scope="module")
def whole(command, bench, tmp_path_factory) -> Path:
    """The folder of a study that nothing interrupted, its teacher included."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = study(bench, "scratch kd", "0 1", "--jobs", "2", "--teacher-opt", str(bench / "teacher.yml"))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.chdir(folder)
        code = run_command(lambda: command.main(arguments))
    printed = output.getvalue()
    assert code == 0, printed
    assert "[4/4] seed 1 kd: done, val_images psnr" in printed
    assert "2 at a time, 1 thread(s) each" in printed
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "results/trial/study.csv").open() as file:
        return list(csv.DictReader(file))


def figures(folder: Path, method: str, metric: str) -> list[float]:
    found = [row for row in rows_of(folder) if (row["method"], row["metric"]) == (method, metric)]
    return [float(row["value"]) for row in sorted(found, key=lambda row: row["seed"])]


def tables(folder: Path) -> str:
    """All of study.md but the measured times."""
    return (folder / "results/trial/study.md").read_text().partition("trial: seconds per iteration")[0]


def test_the_csv_has_every_final_figure_of_the_runs(whole):
    rows = rows_of(whole)
    keys = [(row["seed"], row["method"], row["dataset"], row["metric"]) for row in rows]
    assert keys == [
        (seed, method, "val_images", metric)
        for seed in "01"
        for method in ("scratch", "kd")
        for metric in ("psnr", "ssim")
    ]
    for row in rows:
        name = f"trial_{row['method']}_seed{row['seed']}"
        history = read_history(whole / "experiments/studies/trial" / name / "history.jsonl")
        last = next(entry for entry in history if entry["iter"] == ITERATIONS and "metrics/val_images/psnr" in entry)
        assert float(row["value"]) == last[f"metrics/val_images/{row['metric']}"]
    assert len({row["value"] for row in rows}) == len(rows)


def test_mean_spread_and_paired_difference_are_those_of_the_csv(whole):
    def moments(values: list[float]) -> tuple[float, float]:
        mean = sum(values) / len(values)
        return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))

    text = tables(whole)
    printed = {}
    for method in ("scratch", "kd"):
        (mean, spread), (mean_ssim, spread_ssim) = (moments(figures(whole, method, name)) for name in ("psnr", "ssim"))
        printed[method] = mean
        plain = re.sub(r"\*\*|</?ins>", "", text)
        assert f"{mean:.2f} ± {spread:.2f}/{mean_ssim:.4f} ± {spread_ssim:.4f}" in plain
    best = max(printed, key=lambda method: printed[method])
    line = next(line for line in text.splitlines() if f" {best} " in line)
    assert f"**{printed[best]:.2f}" in line
    pairs = zip(figures(whole, "kd", "psnr"), figures(whole, "scratch", "psnr"), strict=True)
    mean, spread = moments([kd - scratch for kd, scratch in pairs])
    sign = "†" if abs(mean) > 2 * spread / math.sqrt(2) else "/"
    assert f"{mean:+.3f} ± {spread:.3f}{sign}" in text


def test_equal_seeds_start_from_equal_students_and_options_differ_in_the_method_alone(whole):
    runs = json.loads((whole / "results/trial/study.json").read_text())["runs"]
    initial = {(run["seed"], run["method"]): run["initial"] for run in runs}
    assert initial[0, "scratch"] == initial[0, "kd"] != initial[1, "scratch"] == initial[1, "kd"]
    scratch, kd = (
        yaml.safe_load((whole / f"results/trial/options/{method}_seed0.yml").read_text())
        for method in ("scratch", "kd")
    )
    assert kd.pop("network_t") == TEACHER
    assert kd["path"].pop("pretrain_network_t") == "experiments/teacher/models/net_g_latest.pth"
    assert kd["train"].pop("resp_kd_opt") == PIXEL
    assert (kd.pop("model_type"), scratch.pop("model_type")) == ("KDModel", "SRModel")
    assert (kd.pop("name"), scratch.pop("name")) == ("trial_kd_seed0", "trial_scratch_seed0")
    assert kd == scratch


def test_a_finished_study_is_left_as_it_is(command, bench, whole, monkeypatch, capsys):
    monkeypatch.chdir(whole)
    before = {path: path.read_bytes() for path in (whole / "results").rglob("*.*")}
    arguments = study(bench, "scratch kd", "0 1", "--jobs", "2", "--teacher-opt", str(bench / "teacher.yml"))
    assert command.main(arguments) == 0
    assert capsys.readouterr().out.count("done already") == 4
    assert {path: path.read_bytes() for path in (whole / "results").rglob("*.*")} == before


def test_stopped_and_killed_it_ends_with_the_same_table(command, bench, copy, tmp_path, monkeypatch, capsys):
    arguments = study(bench, "scratch kd", "0", "--teacher-opt", str(bench / "teacher.yml"))
    assert command.main(arguments) == 0
    expected = (copy / "results/trial/study.csv").read_bytes(), tables(copy)
    shutil.copytree(copy / "experiments/teacher", tmp_path / "experiments/teacher")
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "experiments/studies/trial"
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        before = checkpoints(runs)
        process = start([sys.executable, SCRIPT, *arguments], env=ENVIRONMENT, **PIPES)
        wait_for(lambda before=before: checkpoints(runs) > before, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code
        assert not list(runs.glob("*kd*/models/net_g_latest.pth"))
        if number == signal.SIGINT:
            *others, last = errors.strip().splitlines()
            assert last == "stopped; to go on where it stopped, give the same command again"
            assert all(" WARNING: " in line for line in others)
    capsys.readouterr()
    assert run_command(lambda: command.main(arguments)) == 0
    assert re.search("goes on after|done already", capsys.readouterr().out)
    assert ((tmp_path / "results/trial/study.csv").read_bytes(), tables(tmp_path)) == expected
    assert not list(runs.glob("*_archived_*"))


def checkpoints(runs: Path) -> int:
    """The newest complete checkpoints of all runs, added up."""
    folders = list(runs.glob("trial_*/training_states"))
    return sum(max((int(path.stem) for path in folder.glob("*.json")), default=0) for folder in folders)


PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()


@pytest.fixture
def copy(whole, tmp_path, monkeypatch) -> Path:
    """The finished study again, as the working directory."""
    shutil.copytree(whole, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def with_teacher(bench: Path, folder: Path, name: str, **changes: Any) -> Path:
    """A base file that names the finished teacher."""
    path = {"pretrain_network_t": "experiments/teacher/models/net_g_latest.pth"}
    return write(folder / f"{name}.yml", {**base(bench), "path": path, **changes})


def test_failing_methods_are_told_and_the_others_go_on(command, bench, copy, capsys):
    arguments = study(bench, "diverging wider scratch kd", "0")
    arguments[1] = str(with_teacher(bench, copy, "named"))
    code = run_command(lambda: command.main([*arguments, "--reference", "scratch"]))
    printed = capsys.readouterr()
    assert code == 5
    assert printed.err.strip() == "2 of 4 runs failed: diverging seed 0, wider seed 0"
    text = tables(copy)
    assert re.search(r"\| diverging +\| 0 of 1, 1 failed +\| +\N{EN DASH} \|", text)
    assert re.search(r"- diverging seed 0 failed: iteration \d+: .* nothing was updated", text)
    assert "- wider seed 0 failed: method wider does not start from the student that the base and seed 0 give" in text
    assert "wider differs from the base in network_g.num_feat: 4 -> 6" in text
    assert len(figures(copy, "kd", "psnr")) == 1
    runs = copy / "experiments/studies/trial"
    assert (runs / "trial_diverging_seed0").is_dir() and not (runs / "trial_wider_seed0").exists()


@pytest.mark.parametrize("change", ["options", "teacher"])
def test_other_options_or_another_teacher_are_refused_for_finished_runs(command, bench, copy, capsys, change):
    changes = {"train": {**base(bench)["train"], "total_iter": 80}} if change == "options" else {}
    arguments = study(bench, "scratch kd", "0 1")
    arguments[1] = str(with_teacher(bench, copy, "named", **changes))
    if change == "teacher":
        torch.save({"params": build_network(TEACHER).state_dict()}, "experiments/teacher/models/net_g_latest.pth")
    before = (copy / "results/trial/study.json").read_bytes()
    code, line = failure(command, capsys, arguments)
    assert code == 2
    expected = {
        "options": "seed 0 scratch of study trial is finished, and was trained otherwise: train.total_iter was",
        "teacher": "seed 0 kd of study trial is finished, and was trained otherwise: another teacher",
    }
    assert expected[change] in line and "--name" in line
    assert (copy / "results/trial/study.json").read_bytes() == before


def test_finished_runs_whose_files_are_gone_or_damaged_are_not_trained_again(command, bench, copy, capsys):
    arguments = study(bench, "scratch kd", "0 1", "--teacher-opt", str(bench / "teacher.yml"), "--dry-run")
    runs = copy / "experiments/studies/trial"
    kept, record = runs / "trial_kd_seed1/trial_kd_seed1.yml", runs / "records/kd_seed1.json"
    for file, content, said in (
        (record, b'{"status": "done", "values": 5}', f"{record.relative_to(copy)} cannot be read; remove it"),
        (kept, b"# versions\n\xff", "trial_kd_seed1.yml cannot be read, and says how its run was trained"),
        (kept, b"# versions\n{: [", "trial_kd_seed1.yml cannot be read, and says how its run was trained"),
    ):
        before = file.read_bytes()
        file.write_bytes(content)
        code, line = failure(command, capsys, arguments)
        assert code == 3 and said in line
        file.write_bytes(before)
    kept.parent.rename(copy / "elsewhere")
    code, line = failure(command, capsys, arguments)
    assert (
        code == 2
        and "seed 1 kd of study trial is finished, but experiments/studies/trial/trial_kd_seed1 is not" in line
    )
    record.unlink()
    assert command.main(arguments) == 0 and "[4/4] seed 1 kd: would start" in capsys.readouterr().out


def failure(command, capsys, arguments: list[str]) -> tuple[int, str]:
    """Exit code and the one line on standard error."""
    code = run_command(lambda: command.main(arguments))
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return code, line


def test_mistakes_are_told_in_a_line_before_anything_is_written(command, bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    nothing = {**base(bench), "network_t": None}
    files = {
        "bare": write(tmp_path / "bare.yml", {key: value for key, value in nothing.items() if value is not None}),
        "sets_val": write(tmp_path / "pieces" / "sets_val.yml", {"val": {"metrics": {}}}),
        "typo": write(tmp_path / "pieces" / "typo.yml", {"train": {"pixel_opt": {"type": "L1Loss", "weight": 1}}}),
    }
    named = ["-opt", str(bench / "base.yml"), "--seeds", "0", "--name", "trial"]
    cases: dict[str, list[str]] = {
        r"no method has this name \(did you mean 'scratch'\?\); there are: at, ": [*named, "--methods", "scrach"],
        r"nowhere/kd.yml: there is no such file": [*named, "--methods", "nowhere/kd.yml"],
        r"--seeds: 1 is given twice": study(bench, "scratch", "1 0 1"),
        r"two are called kd": study(bench, "kd kd", "0"),
        r"--jobs 0: must be at least 1": study(bench, "scratch", "0", "--jobs", "0"),
        r"--reference kd: is none of the methods": study(bench, "scratch", "0", "--reference", "kd"),
        r"method kd learns from a teacher: give its weights in path": study(bench, "kd", "0"),
        r"method kd learns from a teacher: describe it": ["-opt", str(files["bare"]), *study(bench, "kd", "0")[2:]],
        r"sets_val.yml:1: val: is the same for all": [*named, "--methods", str(files["sets_val"])],
        r"typo.yml over the base: train.pixel_opt.weight: unknown": [*named, "--methods", str(files["typo"])],
        r"name is set by the study": study(bench, "scratch", "0", "--force_yml", "name=other"),
        r"train.pixel_opt.loss_weight makes a method": study(
            bench, "scratch", "0", "--force_yml", "train:pixel_opt:loss_weight=2"
        ),
    }
    for expected, arguments in cases.items():
        code, line = failure(command, capsys, arguments)
        assert (code, bool(re.search(expected, line))) == (2, True), (expected, line)
    assert {path.name for path in tmp_path.iterdir()} == {"bare.yml", "pieces"}


def test_a_method_that_owns_the_students_weights_is_marked_and_not_held_against_the_others(command, bench, copy):
    plan, records, tables_ = (importlib.import_module(f"study.{name}") for name in ("plan", "records", "tables"))
    named = with_teacher(bench, copy, "named")
    files = [str(bench / "pieces" / f"{name}.yml") for name in ("scratch", "csd")]
    planned = plan.plan_study(base=named, name="owned", methods=files, seeds=[0])
    (scratch, owns_scratch), (csd, owns_csd) = (records.initial_student(run.options) for run in planned.runs)
    assert (owns_scratch, owns_csd) == (False, True) and scratch != csd
    record = records.Record("done", initial=csd, owns_student=True, values={"val_images": {"psnr": 30.0}})
    table = tables_.means_table(tables_.Findings(planned, {("csd", 0): record}))
    assert any("not from the common initial student: csd" in note for note in table.notes)
    assert table.groups[0].lines[0].cells[0][0].text == "0 of 1"


def test_the_table_says_how_many_images_and_warns_of_other_numbers(command, bench, copy):
    plan, records, tables_ = (importlib.import_module(f"study.{name}") for name in ("plan", "records", "tables"))
    file = with_teacher(bench, copy, "counted")
    pieces = [str(bench / "pieces/scratch.yml")]
    planned = plan.plan_study(base=file, name="counted", methods=pieces, seeds=[0, 1])

    def notes(*counts: int) -> list[str]:
        done = {
            ("scratch", seed): records.Record("done", values={"Set5": {"psnr": 30.0}}, images={"Set5": count})
            for seed, count in enumerate(counts)
        }
        return list(tables_.means_table(tables_.Findings(planned, done)).notes)

    assert "Images: Set5 5." in notes(5, 5) and not any("WARNING" in note for note in notes(5, 5))
    assert "WARNING: Set5: 4 images here, Set5 has 5: figures are not its own." in notes(4, 5)
    assert any("not the same number of images in all runs: 4 for scratch seed 0; 5 for" in note for note in notes(4, 5))


def test_a_base_with_losses_lends_them_to_no_method(command, bench, copy, capsys):
    losses = {"pixel_opt": {**PIXEL, "loss_weight": 7.0}, "resp_kd_opt": PIXEL, "net_d_init_iters": 3}
    file = with_teacher(bench, copy, "lossy", model_type="KDModel", train={**base(bench)["train"], **losses})
    arguments = ["-opt", str(file), *study(bench, "scratch kd", "0 1", "--dry-run")[2:]]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("done already") == 4  # the same options as without them
    assert "train.pixel_opt, train.resp_kd_opt, train.net_d_init_iters not used" in printed


@pytest.mark.parametrize(
    ("differences", "expected"),
    [([0.3, 0.3001, 0.2999], True), ([0.3, -0.3, 0.1], False), ([0.5], False), ([-1.0, -1.2], True)],
)
def test_the_sign_says_more_than_two_standard_errors(command, differences, expected):
    count, mean = len(differences), sum(differences) / len(differences)
    squares = sum((value - mean) ** 2 for value in differences)
    by_hand = count > 1 and mean**2 > 4 * squares / (count - 1) / count
    assert importlib.import_module("study.tables").is_significant(differences) == by_hand == expected


@pytest.mark.parametrize("name", ["quickstart_x2", "edsr_x4"])
def test_the_shipped_bases_fit_every_method_that_needs_no_more(command, name, monkeypatch):
    plan = importlib.import_module("study.plan")
    monkeypatch.setattr(plan, "load_options", without_paths(plan.load_options))
    planned = plan.plan_study(
        base=ROOT / f"options/compare/{name}.yml", name="shipped", methods=["scratch", "kd", "fakd", "mipkd"], seeds=[0]
    )
    assert [run.options.model_type for run in planned.runs] == ["SRModel", "KDModel", "KDModel", "KDModel"]
    assert planned.remarks == ()


def test_the_base_may_name_a_teachers_cache_which_methods_without_a_teacher_do_not_read(command, bench, tmp_path):
    plan = importlib.import_module("study.plan")
    cached = base(bench)
    cached["datasets"]["train"]["teacher_cache"] = str(tmp_path)
    planned = plan.plan_study(
        base=write(tmp_path / "cached.yml", cached),
        name="cached",
        methods=[str(bench / f"pieces/{name}.yml") for name in ("scratch", "kd")],
        seeds=[0],
        teacher=tmp_path / "teacher.pth",
        teacher_is_there=False,
    )
    assert [run.options.teacher_cache for run in planned.runs] == [None, str(tmp_path)]
    assert planned.remarks == ()


def test_a_base_may_have_images_without_hr_which_a_method_without_a_teacher_does_without(command, bench, tmp_path):
    plan = importlib.import_module("study.plan")

    def planned(datasets: dict, *methods: str):
        return plan.plan_study(
            base=write(tmp_path / "some.yml", {**base(bench), "datasets": datasets}),
            name="some",
            methods=[str(bench / f"pieces/{name}.yml") for name in methods],
            seeds=[0],
            teacher=tmp_path / "teacher.pth",
            teacher_is_there=False,
        )

    datasets = base(bench)["datasets"]
    lq = {"type": "PairedImageDataset", "name": "alone", "dataroot_lq": datasets["train"]["dataroot_lq"]}
    study = planned({**datasets, "train_2": lq}, "scratch", "kd")
    assert [list(run.options.further_sets) for run in study.runs] == [[], ["train_2"]]
    assert study.remarks == ("scratch has no teacher, and trains without datasets.train_2, without HR images",)
    alone = {**datasets, "train": {**datasets["train"], "dataroot_gt": None}}
    with pytest.raises(OptionsError, match=r"kd\.yml over the base: train\.pixel_opt: compares with HR images, and"):
        planned(alone, "kd")
    piece = write(bench / "pieces/teacher_alone.yml", {"train": {"resp_kd_opt": {"type": "L1Loss"}}})
    (run,) = planned(alone, piece.stem).runs
    assert run.options.datasets["train"].arguments["dataroot_gt"] is None


def test_what_does_not_fit_the_length_of_a_study_is_told_once(command, monkeypatch):
    plan = importlib.import_module("study.plan")
    monkeypatch.setattr(plan, "load_options", without_paths(plan.load_options))
    base = ROOT / "options/compare/quickstart_x2.yml"
    planned = plan.plan_study(
        base=base,
        name="short",
        methods=["kd", "fakd", "dckd_as_published"],
        seeds=[0, 1],
        overrides=["train:scheduler={type: MultiStepLR, milestones: [5000, 9000]}"],
    )
    told = [remark for remark in planned.remarks if "total_iter" in remark]
    assert [line.partition(" ")[0] for line in told] == ["--force_yml:", "dckd_as_published:"]
    assert "train.scheduler.milestones: [5000, 9000] is not reached within total_iter" in told[0]
    assert "train.ema_decay: is 0.999" in told[1]


def without_paths(load_options):
    """The same, for a machine without the data."""
    return lambda *arguments, **named: load_options(*arguments, **{**named, "paths": False})


def test_auto_is_chosen_once_for_all_runs_of_a_study(command, bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    forced = ["--force_yml", "amp=auto", "path:allow_random_teacher=true"]
    arguments = command.parse(study(bench, "scratch kd", "0 1", *forced))
    planned, _ = command.plan(arguments)
    assert {run.options.amp for run in planned.open_runs} == {"auto"}
    command.choose_once(planned, 1)
    file = planned.precision_file
    kept = json.loads(file.read_text())
    assert kept["amp"] == kept["amp_teacher"] in ("bf16", "none") and kept["told"].startswith("amp auto: ")
    for chosen in ("bf16", "none"):
        file.write_text(json.dumps({**kept, "amp": chosen, "told": f"amp auto: {chosen}"}))
        planned, _ = command.plan(arguments)
        assert not planned.open_runs and planned.plain.amp == chosen
        assert {(run.options.amp, run.content["amp"]) for run in planned.runs} == {(chosen, chosen)}
        assert f"amp auto: {chosen}; in all runs" in planned.remarks
        assert not any("differs" in remark for remark in planned.remarks)
    file.write_text('{"amp": "bf8"}')
    assert run_command(lambda: command.main([*study(bench, "scratch kd", "0 1", *forced), "--dry-run"])) == 3
    assert "precision.json cannot be read" in capsys.readouterr().err


def test_times_are_quoted_where_nothing_slowed_the_trainings_down(command, whole):
    time_doubt = sys.modules["study.tables"].time_doubt
    steady = {"scratch": Spread(1.0, 0.97, 1.05), "kd": Spread(2.0, 1.9, 2.1)}
    assert time_doubt(steady, 1) == time_doubt({}, 1) == ""
    assert time_doubt(steady, 2) == "2 trainings ran at a time, and slowed each other down"
    wide = time_doubt({**steady, "fakd": Spread(1.0, 0.8, 1.2)}, 1)
    assert wide == "the middle half of the times of fakd spreads over 40 %"
    told = (whole / "results/trial/study.md").read_text().partition("trial: seconds per iteration")[2]
    assert "Times are no figures to quote: 2 trainings ran at a time" in told
    for run in json.loads((whole / "results/trial/study.json").read_text())["runs"]:
        assert run["middle"][0] <= run["seconds"] <= run["middle"][1]
