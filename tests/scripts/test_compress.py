"""scripts/compress.py as a command: a tiny run that is killed and goes on, what changes redo, and what is refused."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
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

from basicsr.archs import build_network
from basicsr.config.load import load_options
from basicsr.engine.process.command import run_command
from basicsr.utils.errors import OptionsError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "scripts/compress.py")
EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}
PIXEL = {"type": "L1Loss", "loss_weight": 1.0}


@pytest.fixture(scope="module")
def command():
    """The script as a module, and the packages beside it."""
    return importlib.import_module("compress")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Trainings are compared bitwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """A folder with images and a teacher."""
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
    torch.manual_seed(0)
    state = build_network(EDSR).state_dict()
    torch.save({"params": state, "network": {**EDSR, "scale": 2}}, folder / "teacher.pth")
    (folder / "empty").mkdir()
    return folder


def options(bench: Path, root: Path) -> dict[str, Any]:
    """A run of seconds."""

    def images(phase: str) -> dict[str, Any]:
        folders = {"dataroot_gt": str(bench / phase / "HR"), "dataroot_lq": str(bench / phase / "LR")}
        common = {"type": "PairedImageDataset", "name": phase, "filename_tmpl": "{}x2"}
        return {**common, **folders, "io_backend": {"type": "disk"}}

    return {
        "name": "tiny",
        "scale": 2,
        "num_gpu": 0,
        "manual_seed": 0,
        "datasets": {
            "train": {**images("train"), "gt_size": 30, "num_worker_per_gpu": 0, "batch_size_per_gpu": 2},
            "val": images("val"),
            "test_1": {**images("val"), "name": "test"},
        },
        "path": {"pretrain_network_t": str(bench / "teacher.pth"), "experiments_root": str(root / "experiments")},
        "train": {
            "optim_g": {"type": "Adam", "lr": 1e-3},
            "total_iter": 6,
            "pixel_opt": PIXEL,
            "resp_kd_opt": PIXEL,
        },
        "val": {"val_freq": 6, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}},
        "logger": {"print_freq": 2, "save_checkpoint_freq": 2},
        "compress": {
            "budget": {"parameters": 3000, "tolerance": 0.9},
            "latency": {"size": [16, 16], "seconds": 0.1},
            "families": {
                "compact": {"network": {"type": "SRVGGNetCompact"}, "ranges": {"num_feat": [4, 8], "num_conv": [1]}}
            },
            "search": {"iterations": 2, "rungs": 2},
            "quantize": {"iterations": 2},
            "targets": [{"target": "onnxruntime", "precisions": ["float32", "int8"]}],
            "max_drop": 5.0,
        },
    }


def changed(content: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A copy with values at keys such as `compress__budget`; None removes one."""
    content = copy.deepcopy(content)
    for key, value in values.items():
        *parts, last = key.split("__")
        section = content
        for part in parts:
            section = section[part]
        section.pop(last, None)
        if value is not None:
            section[last] = value
    return content


def write(file: Path, content: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def steps_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["steps"]


def run(command: Any, file: Path, *arguments: str) -> int:
    return run_command(lambda: command.main(["-opt", str(file), *arguments]))


@pytest.fixture(scope="module")
def finished(bench, tmp_path_factory, command) -> Path:
    """The folder of a run that was killed in the search's second rung, and went on."""
    root = tmp_path_factory.mktemp("finished")
    (root / "val").symlink_to(bench / "val")
    file = write(root / "tiny.yml", options(bench, root))
    folder = root / "experiments/compress/tiny"
    process = subprocess.Popen([sys.executable, SCRIPT, "-opt", str(file)])
    while not (folder / "logs/search_rung2_compact_8_1.log").is_file() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert run(command, file) == 0
    return folder


def test_a_run_that_was_killed_comes_to_its_end(finished):
    steps = steps_of(finished)
    tried = [name for name in steps if name.startswith("search_")]
    assert sorted(tried) == ["search_rung1_compact_4_1", "search_rung1_compact_8_1", "search_rung2_compact_8_1"]
    figures = steps["figures student, val"]["result"]
    outcome = steps["distil_compact_8_1"]["result"]["values"]["val"]["psnr"]
    assert np.mean(figures["values"]) == pytest.approx(outcome, abs=1e-6)
    assert {"figures student, test", "figures teacher, val", "latencies", "quantise_compact_8_1"} <= set(steps)


def test_its_files_run_without_torch_and_give_the_figures_that_are_reported(finished):
    """Of the int8 file: PSNR of its outputs, by onnxruntime alone."""
    report = json.loads((finished / "report.json").read_text())
    assert {path.name for path in (finished / "shipped").iterdir()} == {
        "tiny_x2_onnxruntime.onnx",
        "tiny_x2_onnxruntime_int8.onnx",
    }
    shipped = next(file for file in report["files"] if file["precision"] == "int8")
    program = f"""
import sys, numpy as np, onnxruntime, cv2
session = onnxruntime.InferenceSession({str(finished / "shipped/tiny_x2_onnxruntime_int8.onnx")!r})
found = []
for index in range(2):
    lq, gt = (cv2.imread(f"{finished.parents[2]}/val/{{name}}.png") for name in (f"LR/{{index}}x2", f"HR/{{index}}"))
    given = np.ascontiguousarray(lq[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255)
    made = session.run(None, {{session.get_inputs()[0].name: given}})[0][0].transpose(1, 2, 0)[..., ::-1]
    difference = np.rint(made.clip(0, 1) * 255)[2:-2, 2:-2] - gt[2:-2, 2:-2]
    found.append(10 * np.log10(255**2 / np.square(difference).mean()))
assert "torch" not in sys.modules
print(np.mean(found))
"""
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert float(told) == pytest.approx(shipped["figures"]["val"]["psnr"], abs=1e-3)
    assert report["figures"]["student, quantised"]["val"]["psnr"] == pytest.approx(float(told), abs=0.5)
    assert set(report["sensitivity"]) == {"body.0", "body.2", "body.4"}
    assert report["compared"] is None


def test_its_report_is_one_file_that_asks_nothing_of_a_network(finished):
    text = (finished / "report.html").read_text()
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
    for word in ("compact_8_1 (chosen)", "onnxruntime int8, quantised", "Sensitivity", "data:image", "<svg"):
        assert word in text
    assert "| x2" in (finished / "report.md").read_text()


@pytest.mark.long
def test_its_options_train_the_same_student_by_hand(finished, tmp_path):
    """Bitwise, without the command and without a kill."""
    content = yaml.safe_load((finished / "options/distil_compact_8_1.yml").read_text())
    content["path"]["experiments_root"] = str(tmp_path)
    file = write(tmp_path / "own.yml", content)
    load_options(finished / "options/search_rung2_compact_8_1.yml", training=True)
    script = str(ROOT / "basicsr/train.py")
    subprocess.run([sys.executable, script, "-opt", str(file)], check=True, capture_output=True)
    name = "distil_compact_8_1/models/net_g_latest.pth"
    own, theirs = (torch.load(root / name, weights_only=True)["params"] for root in (tmp_path, finished / "runs"))
    assert all(torch.equal(value, theirs[key]) for key, value in own.items()) and own.keys() == theirs.keys()


def test_the_same_command_does_nothing_twice_and_a_change_redoes_what_depends_on_it(finished, bench, command):
    root = finished.parents[2]
    before = steps_of(finished)
    content = options(bench, root)
    assert run(command, write(root / "tiny.yml", content)) == 0
    assert steps_of(finished) == before
    assert run(command, write(root / "tiny.yml", changed(content, compress__max_drop=4.0))) == 0
    after = steps_of(finished)
    redone = {name for name, step in after.items() if step["key"] != before[name]["key"]}
    assert redone == {"file onnxruntime int8 calibrated", "file onnxruntime int8 quantised"}


@pytest.mark.long
def test_a_student_of_another_family_is_trained_alike(finished, bench, command):
    """What the run has found already stays, the chosen student's training of its own seed too."""
    root, before = finished.parents[2], steps_of(finished)
    compared = {"network": {key: EDSR[key] for key in EDSR if key != "upscale"}, "seeds": [0, 1]}
    assert run(command, write(root / "tiny.yml", changed(options(bench, root), compress__compare=compared))) == 0
    after, report = steps_of(finished), json.loads((finished / "report.json").read_text())
    kept = [name for name in before if name.startswith(("search_", "distil_", "quantise_"))]
    assert all(after[name]["key"] == before[name]["key"] for name in kept)
    new = {name for name in after if name.startswith("distil_") and name not in before}
    assert new == {"distil_compact_8_1_seed1", "distil_compared", "distil_compared_seed1"}
    assert [set(found) for found in report["compared"]["figures"].values()] == [{"compact_8_1", "compared"}] * 2
    assert "Equal latency, equal training" in (finished / "report.html").read_text()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"compress__budget": {"parameters": 10}},
         "budget: parameters: 10: no candidate is within it; the smallest that there is, compact, num_feat 4, num_conv"
         " 1, takes 712 parameters"),
        ({"compress__budget": {"ms": 5, "parameters": 10}}, "must give one of ms, parameters, multiply_adds"),
        ({"compress__families__compact__ranges": {"num_feet": [4]}}, "compact.ranges.num_feet: unknown key (did you"),
        ({"compress__families__compact__network": {"type": "SRVGGNetCompact", "upscale": 3}}, "options' scale is 2"),
        ({"compress__latency": {"target": "onnxruntine"}}, "is called 'onnxruntine' (did you mean 'onnxruntime'?)"),
        ({"compress": None}, "has no section compress"),
        ({"network_g": EDSR}, "network_g: is not for this command"),
        ({"scale": 3}, "wrong scale: it is EDSR for x2, the options' scale is 3"),
        ({"datasets__train__dataroot_gt": "EMPTY", "datasets__train__dataroot_lq": None}, "empty holds no image (.png"),
        ({"path__pretrain_network_t": None}, "path.pretrain_network_t: is required: the file of the teacher's weights"),
        ({"train__distill": {"f": {"type": "FitNet"}}}, "set compress: cache: false"),
        ({"train__optim_g": {"type": "Adam"}}, "optim_g: lr: is required: brief and quantised trainings take a"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_any_work(values, message, bench, tmp_path, command, capsys):
    content = changed(options(bench, tmp_path), **values)
    text = yaml.safe_dump(content, sort_keys=False).replace("EMPTY", str(bench / "empty"))
    file = tmp_path / "wrong.yml"
    file.write_text(text)
    assert run(command, file) not in (0, 1)
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told
    assert not list((tmp_path / "experiments").rglob("*.pth"))


def test_a_runtime_that_is_not_installed_is_told_before_any_work(bench, tmp_path, command, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "onnxruntime" else find(name, *more)
    )
    file = write(tmp_path / "tiny.yml", options(bench, tmp_path))
    assert run(command, file) == 6
    assert "onnxruntime" in (told := capsys.readouterr().err) and "pip install" in told
    assert not (tmp_path / "experiments").exists()


def test_a_dry_run_tells_the_plan_and_writes_nothing(bench, tmp_path, command, capsys):
    file = write(tmp_path / "tiny.yml", options(bench, tmp_path))
    assert run(command, file, "--dry-run", "--force_yml", "compress:search:rungs=3") == 0
    told = capsys.readouterr().out
    assert "search, rung 3: 1 candidates to iteration 8" in told and "winner distilled: 6 iterations" in told
    assert not (tmp_path / "experiments").exists()


def test_candidates_on_the_edge_take_turns_between_families():
    candidates = importlib.import_module("compression.candidates")
    budget = importlib.import_module("compression.options").Budget(ms=10.0, tolerance=0.3)
    costs = {"a1": 9.5, "a2": 9.0, "a3": 8.0, "b1": 7.5, "b2": 3.0, "a4": 11.0}
    families = {name: name[0] for name in costs}
    chosen = candidates.on_the_edge(costs, families, budget, 3, costs)
    assert chosen[0] == ["a1", "b1", "a2"] and "4 candidates lie on the budget's edge" in chosen[1]
    far = {"a1": 2.0, "a2": 3.0, "b1": 1.0}
    assert candidates.on_the_edge(far, families, budget, 3, far)[0] == ["a2", "b1"]
    with pytest.raises(OptionsError, match="the fastest that there is, second, takes 12 ms"):
        candidates.on_the_edge({"a": 20.0, "b": 12.0}, families, budget, 3, {"a": "first", "b": "second"})


def test_a_family_may_have_its_own_learning_rates(command, tmp_path):
    content, stages = (importlib.import_module(f"compression.{name}") for name in ("options", "stages"))
    settings = content.read_settings(ROOT / "options/compress/quickstart.yml", paths=False)
    made = stages.Stages(settings, tmp_path, {})
    (candidates, _) = importlib.import_module("compression.pipeline").all_candidates(settings)
    for family, distilled in (("compact", 2e-3), ("plain", 5e-4)):
        candidate = next(one for one in candidates if one.family == family)
        found = [made.distil(candidate), made.search(candidate, 0), made.quantise(candidate, tmp_path / "w.pth")]
        rates = [options["train"]["optim_g"]["lr"] for options in found]
        assert rates == pytest.approx([distilled, distilled / 2, distilled / 10])


@pytest.mark.parametrize("file", sorted((ROOT / "options/compress").glob("*.yml")), ids=lambda file: file.stem)
def test_shipped_files_are_read_and_their_candidates_built(file, command, tmp_path):
    content = importlib.import_module("compression.options")
    pipeline = importlib.import_module("compression.pipeline")
    settings = content.read_settings(file, paths=False)
    assert settings.warnings == ()
    for found in pipeline.all_candidates(settings):
        for candidate in found:
            with torch.device("meta"):
                build_network(candidate.block)
    assert file.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
