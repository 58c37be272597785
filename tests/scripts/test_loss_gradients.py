"""scripts/loss_gradients.py against gradients taken by hand, and as a command."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from support.shipped import reduced
from support.training import changed, finish

from basicsr.archs import build_network
from basicsr.config.load import load_options
from basicsr.data import build_train_loader
from basicsr.utils.errors import OptionsError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script():
    return importlib.import_module("loss_gradients")


@pytest.fixture
def options(image_pairs):
    """Response distillation, the student and the teacher untrained, in float32."""
    loaded = load_options(ROOT / "options/train/kd_edsr_x2.yml", training=True, paths=False)
    return changed(reduced(loaded, image_pairs), amp="none", amp_teacher="none", channels_last=False)


def measured(script, options, batches, **changes):
    return script.measure(load_options(changed(options, **changes), training=True), batches)


def test_norms_and_cosines_are_those_of_gradients_taken_by_hand(script, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {}
    for number, name in enumerate("gt"):
        torch.manual_seed(number)
        network = build_network(options[f"network_{name}"])
        files[f"path__pretrain_network_{name}"] = str(tmp_path / f"{name}.pth")
        torch.save({"params": network.state_dict()}, tmp_path / f"{name}.pth")
    options = changed(options, train__distill__response__criterion__loss_weight=3.0, **files)
    pulls = measured(script, options, 2)

    networks = {}
    for name in "gt":
        networks[name] = build_network(options[f"network_{name}"]).double()
        state = torch.load(tmp_path / f"{name}.pth", weights_only=True)["params"]
        networks[name].load_state_dict({key: value.double() for key, value in state.items()})
    typed = load_options(options, training=True)
    loader = build_train_loader(
        typed.datasets["train"], seed=typed.manual_seed, rank=0, world_size=1, start_iteration=0, total_iterations=2,
        accumulate=1, on_gpu=False,
    )  # fmt: skip
    gradients = {"l_pix": [], "l_resp": []}
    for batch in (batch.to("cpu") for (batch,) in loader):
        sr = networks["g"](batch.lq.double())
        losses = {"l_pix": (sr - batch.gt.double()).abs().mean()}
        losses["l_resp"] = 3 * (sr - networks["t"](batch.lq.double()).detach()).abs().mean()
        for name, loss in losses.items():
            found = torch.autograd.grad(loss, list(networks["g"].parameters()), retain_graph=True)
            gradients[name].append(torch.cat([gradient.flatten() for gradient in found]))
    assert list(pulls) == ["l_pix", "l_resp"]
    for name, rows in gradients.items():
        assert pulls[name].norms == pytest.approx([row.norm().item() for row in rows], rel=1e-3)
        between = torch.dot(rows[0], rows[1]) / rows[0].norm() / rows[1].norm()
        assert pulls[name].agreement == pytest.approx(between.item(), abs=1e-3)
        to_first = [
            (torch.dot(row, first) / row.norm() / first.norm()).item()
            for row, first in zip(rows, gradients["l_pix"], strict=True)
        ]
        assert pulls[name].cosines == pytest.approx(to_first, abs=1e-3)
    ratio = (
        sum(own.norm() / first.norm() for own, first in zip(gradients["l_resp"], gradients["l_pix"], strict=True)) / 2
    )
    assert f"{ratio:.3g}" == script.table(pulls).splitlines()[2].split()[3]


def test_a_part_that_leaves_the_student_alone_has_no_direction(script, image_pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_options(ROOT / "options/train/mipkd_edsr_x2.yml", training=True, paths=False)
    pulls = measured(script, reduced(loaded, image_pairs), 1)
    assert pulls["l_ae"].norms == [0] and pulls["l_ae"].values[0] > 0
    line = next(line for line in script.table(pulls).splitlines() if line.startswith("l_ae"))
    assert line.split()[2:] == ["0", "0", "-", "-"]


def test_a_weight_ten_times_as_large_pulls_ten_times_as_much_the_adversarys_too(
    script, image_pairs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    loaded = load_options(ROOT / "options/train/mcadkd_edsr_x2.yml", training=True, paths=False)
    options = reduced(loaded, image_pairs)
    stronger = changed(options)
    for block in (stronger["train"]["adversarial_opt"], stronger["train"]["distill"]["contrastive"]):
        block["loss_weight"] *= 10
    pulls, stronger_pulls = (measured(script, given, 2) for given in (options, stronger))
    assert list(pulls) == list(stronger_pulls) == ["l_pix", "l_resp", "l_img", "l_patch", "l_adv"]
    for name, pull in pulls.items():
        factor = 1 if name in ("l_pix", "l_resp") else 10
        assert all(norm > 0 for norm in pull.norms)
        assert stronger_pulls[name].norms == pytest.approx([factor * norm for norm in pull.norms], rel=1e-4)
        assert stronger_pulls[name].values == pytest.approx(pull.values)


def test_a_checkpoint_lends_its_student_heads_and_discriminator(script, image_pairs, tmp_path, monkeypatch):
    """A part's value, measured anew at the checkpoint of iteration 2, is what the run itself logged at iteration 3."""
    loaded = load_options(ROOT / "options/train/mcadkd_edsr_x2.yml", training=True, paths=False)
    options = changed(reduced(loaded, image_pairs), amp="none", amp_teacher="none", logger__print_freq=1)
    finish(options, tmp_path)
    folder = tmp_path / "experiments" / options["name"]
    entries = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    (logged,) = (entry for entry in entries if entry["iter"] == 3 and "losses/l_pix" in entry)
    monkeypatch.chdir(tmp_path)
    pulls = measured(script, options, 1, path__resume_state=str(folder / "training_states/2.state"))
    for name, pull in pulls.items():
        assert pull.values[0] == pytest.approx(logged[f"losses/{name}"], rel=1e-5), name


def test_a_method_that_trains_the_students_weights_in_its_place_is_told(script, image_pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_options(ROOT / "options/train/csd_edsr_x2.yml", training=True, paths=False)
    with pytest.raises(OptionsError, match="SharedCSD trains the student's weights in its place"):
        measured(script, reduced(loaded, image_pairs), 1)


def test_several_processes_are_refused(script, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionsError, match="runs in one process; start it without torchrun"):
        script.main(["-opt", str(ROOT / "options/train/kd_edsr_x2.yml")])


def test_a_finished_run_is_measured_by_its_state_and_nothing_is_written(options, tmp_path):
    finish(options, tmp_path)
    states = tmp_path / "experiments" / options["name"] / "training_states"
    (tmp_path / "options.yml").write_text(yaml.safe_dump(options))
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    command = [sys.executable, str(ROOT / "scripts/loss_gradients.py"), "-opt", "options.yml", "--batches"]
    runs = [
        subprocess.run([*command, count, *more], cwd=tmp_path, capture_output=True, text=True)
        for count, more in (("2", []), ("2", ["--force_yml", f"path:resume_state={states / '3.state'}"]), ("0", []))
    ]
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before
    untrained, trained, wrong = runs
    for run in (untrained, trained):
        assert run.returncode == 0, run.stderr
        assert [line.split()[0] for line in run.stdout.splitlines()] == ["part", "l_pix", "l_resp"]
    assert untrained.stdout != trained.stdout
    assert wrong.returncode != 0 and "--batches is 0, allowed: 1 and more" in wrong.stdout + wrong.stderr
