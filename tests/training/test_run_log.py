"""The logs of real runs: cut off, resumed, read back by the programs they are for."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support.training import changed, start, train, without_teacher

from basicsr.config.load import load_options
from basicsr.engine.process.distributed import RankInfo
from basicsr.engine.training_run import TrainingRun
from basicsr.files.images import imfrombytes
from basicsr.files.run_history import read_history
from basicsr.metrics.evaluator import Evaluation
from basicsr.train import train_pipeline
from basicsr.utils.errors import MachineError
from basicsr.utils.matlab_functions import imresize


def timeless(experiment: Path) -> list[dict[str, float]]:
    """A run's history without what differs from run to run."""
    entries = read_history(experiment / "history.jsonl")
    return [{name: value for name, value in entry.items() if not name.startswith("time/")} for entry in entries]


def run(options: dict[str, Any], root: Path) -> Path:
    process = start(train, options, str(root))
    process.join()
    assert process.exitcode == 0
    return root / "experiments/tiny"


def tensorboard(root: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(root / "tb_logger/tiny"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_a_killed_and_resumed_run_has_the_history_and_curves_of_one_that_never_was(mcadkd, tmp_path):
    options = changed(mcadkd, train__total_iter=12, val__val_freq=5, logger__print_freq=2, logger__use_tb_logger=True)
    expected = timeless(run(options, tmp_path / "whole"))
    assert [entry["iter"] for entry in expected] == [2, 4, 5, 6, 8, 10, 10, 12, 12]
    process = start(train, options, str(tmp_path / "killed"))
    history = tmp_path / "killed/experiments/tiny/history.jsonl"
    while process.is_alive() and not (history.exists() and '"iter": 6' in history.read_text()):
        time.sleep(0.001)
    process.kill()
    process.join()
    with open(history, "a") as file:
        file.write('{"iter": 7, "losses/l_p')
    experiment = run(options, tmp_path / "killed")
    assert timeless(experiment) == expected
    assert not list(tmp_path.glob("killed/experiments/*_archived_*"))
    whole, killed = tensorboard(tmp_path / "whole"), tensorboard(tmp_path / "killed")
    assert killed.Tags() == whole.Tags()
    for tag in whole.Tags()["scalars"]:
        assert [event.step for event in killed.Scalars(tag)] == [event.step for event in whole.Scalars(tag)]


def test_tensorboard_has_the_names_of_the_history_and_the_options(mcadkd, tmp_path):
    options = changed(mcadkd, logger__use_tb_logger=True, val__val_freq=4)
    experiment = run(options, tmp_path)
    events = tensorboard(tmp_path)
    names = {name for entry in read_history(experiment / "history.jsonl") for name in entry} - {"iter"}
    assert set(events.Tags()["scalars"]) == names
    assert {"losses/l_pix", "lr/student", "metrics/val/psnr", "time/iteration"} <= names
    for entry in read_history(experiment / "history.jsonl"):
        for name, value in entry.items():
            if name != "iter":
                (event,) = [event for event in events.Scalars(name) if event.step == entry["iter"]]
                assert event.value == pytest.approx(value, rel=1e-6)  # TensorBoard keeps float32
    (text,) = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("options/text_summary")]
    written = (experiment / "tiny.yml").read_text().splitlines()
    assert [line[4:] for line in text.splitlines()] == [line for line in written if not line.startswith("#")]


def test_hyperparameters_are_in_tensorboards_table_by_their_whole_names(mcadkd, tmp_path):
    from tensorboard.plugins.hparams import metadata

    run(changed(mcadkd, logger__use_tb_logger=True), tmp_path)
    content = tensorboard(tmp_path).PluginTagToContent("hparams")
    session = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    values = session.hparams
    assert values["train.optim_g.lr"].number_value == 1e-3
    assert values["network_g.type"].string_value == "EDSR"
    assert values["datasets.train.use_hflip"].number_value == 1


def columns_of(picture: np.ndarray, widths: int) -> list[np.ndarray]:
    """The images of a comparison, whose columns are 40 pixels wide and 4 apart, below names of 22 pixels."""
    return [picture[22:, left : left + 40] for left in range(0, widths, 44)]


def test_comparison_images_show_lr_student_teacher_and_hr(mcadkd, tmp_path):
    options = changed(mcadkd, logger__use_tb_logger=True, val__val_freq=4, val__save_img=True)
    experiment = run(options, tmp_path)
    events = tensorboard(tmp_path)
    assert events.Tags()["images"] == ["images/val/img000x2"], "the first image alone"
    shown = events.Images("images/val/img000x2")
    assert [event.step for event in shown] == [4, 8]
    pictures = [imfrombytes(event.encoded_image_string) for event in shown]
    assert pictures[0].shape == (62, 4 * 40 + 3 * 4, 3)
    early, late = (columns_of(picture, 176) for picture in pictures)
    val = Path(options["datasets"]["val"]["dataroot_gt"]).parent
    hr = cv2.imread(str(val / "HR/img000.png"))
    lr = cv2.imread(str(val / "LR_X2/img000x2.png"))
    assert np.array_equal(early[3], hr)
    bicubic = imresize(lr.astype(np.float32) / 255, 2)
    assert np.array_equal(early[0], (bicubic.clip(0, 1) * 255).round().astype(np.uint8))
    for iteration, picture in ((4, early), (8, late)):
        saved = cv2.imread(str(experiment / f"visualization/val/img000x2/img000x2_{iteration}.png"))
        assert np.array_equal(picture[1], saved)
    assert np.array_equal(early[2], late[2]), "the teacher does not learn"
    assert not np.array_equal(early[1], early[2]) and not np.array_equal(early[2], hr)


def test_without_a_teacher_its_column_is_left_out(mcadkd, tmp_path):
    run(without_teacher(mcadkd, logger__use_tb_logger=True), tmp_path)
    (event,) = tensorboard(tmp_path).Images("images/val/img000x2")
    assert imfrombytes(event.encoded_image_string).shape == (62, 3 * 40 + 2 * 4, 3)


def test_a_lower_figure_is_the_better_one_where_the_metric_says_so(mcadkd, tmp_path, monkeypatch):
    metrics = {"niqe": {"type": "calculate_niqe", "better": "lower"}, "lpips": {"type": "calculate_lpips"}}
    monkeypatch.setattr("basicsr.engine.training_run.prepare_metrics", lambda *_: None)  # pyiqa may be absent
    options = load_options(changed(without_teacher(mcadkd), val__metrics=metrics), training=True, root=tmp_path)
    rank_info = RankInfo(device=torch.device("cpu"), rank=0, world_size=1, remark="")
    training = TrainingRun(options, rank_info, None)

    def note(*values: float) -> list[str]:
        table = np.array([values])
        return training.note_best("val", Evaluation(("niqe", "lpips"), ("a",), table, np.zeros(1)))

    assert note(5.0, float("nan")) == ["niqe", "lpips"]
    assert note(4.0, 0.3) == ["niqe", "lpips"], "whatever comes after NaN is better"
    assert note(4.5, 0.2) == ["lpips"]
    assert note(float("nan"), 0.25) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logger__wandb": {"project": "p"}}, r"needs the package wandb .*; install it: pip install -e \.\[wandb\]"),
        ({"val__metrics": {"niqe": {"type": "calculate_niqe"}}}, r"need the package pyiqa; install it"),
    ],
    ids=["wandb", "pyiqa"],
)
def test_a_package_that_is_not_installed_is_told_before_anything_is_written(
    mcadkd, tmp_path, monkeypatch, changes, message
):
    for package in ("wandb", "pyiqa"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MachineError, match=message):
        train_pipeline(changed(mcadkd, **changes), root=tmp_path)
    assert not (tmp_path / "experiments").exists()


def test_wandb_without_a_project_is_not_asked_for(mcadkd, tmp_path, monkeypatch):
    """As BasicSR's own files have it."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    options = changed(without_teacher(mcadkd), train__total_iter=1, logger__wandb={"project": None, "resume_id": None})
    assert train_pipeline(options, root=tmp_path).iteration == 1


def offline_records(path: Path) -> list[Any]:
    """What W&B keeps of an offline run: records of protocol buffers in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    data, position, pending, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768  # blocks; a header does not go over their ends
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += 7
        pending += data[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            records.append(record)
            pending = b""
    return records


def test_wandb_offline_goes_on_with_the_same_run_and_repeats_nothing(mcadkd, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    options = changed(
        mcadkd,
        logger__wandb={"project": "p", "mode": "offline"},
        logger__print_freq=2,
        logger__save_checkpoint_freq=2,
        val__val_freq=4,
    )
    experiment = run(changed(options, train__total_iter=6), tmp_path)
    identity = json.loads((experiment / "wandb.json").read_text())
    assert identity["iter"] == 6
    for file in [*experiment.glob("training_states/*"), *experiment.glob("models/*")]:
        if file.stem.endswith(("4", "6")):  # as if the run had been cut off after 6, before it saved 4
            file.unlink()
    run(options, tmp_path)
    assert json.loads((experiment / "wandb.json").read_text()) == {"id": identity["id"], "iter": 8}
    files = sorted(experiment.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime)
    assert len(files) == 2
    steps, figures = [], {}
    for file in files:
        records = offline_records(file)
        (opened,) = [record.run for record in records if record.HasField("run")]
        assert (opened.run_id, opened.project, opened.display_name) == (identity["id"], "p", "tiny")
        settings = {item.key: json.loads(item.value_json) for item in opened.config.update}
        assert settings["train"]["optim_g"]["lr"] == 1e-3
        for record in (record.history for record in records if record.HasField("history")):
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.item}
            steps.append(record.step.num)
            figures.setdefault(values["iter"], {}).update(values)
        assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    assert steps == sorted(set(steps)), "steps grow, also over the resume"
    assert list(figures) == [2, 4, 6, 8]
    for entry in read_history(experiment / "history.jsonl"):
        for name, value in entry.items():
            if not name.startswith("time/"):
                assert figures[entry["iter"]][name] == pytest.approx(value, rel=1e-12)
    assert any(name.startswith("images/val/img000x2") for name in figures[8])
    assert len(list(experiment.glob("wandb/offline-run-*/files/media/images/**/*.png"))) == 3


def test_wandb_that_cannot_be_reached_ends_the_run_before_training(mcadkd, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody is logged in
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    options = changed(without_teacher(mcadkd), logger__wandb={"project": "p"})
    with pytest.raises(MachineError, match=r"Weights & Biases cannot be used: .*; log in by `wandb login`, or write"):
        train_pipeline(options, root=tmp_path)
    assert read_history(tmp_path / "experiments/tiny/history.jsonl") == []
