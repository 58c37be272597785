"""A run ends by `val: patience` when validations bring nothing better, and goes on only where it is given more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.training import changed, checkpoint_of, differences, run_ranks, train_rank_all, without_teacher

from basicsr.train import train_pipeline
from basicsr.utils.errors import OptionsError


@pytest.fixture
def options(mcadkd):
    """Validated after each iteration, with a rate at which nothing gets better, of which no step is a hundredth dB."""
    return changed(
        without_teacher(mcadkd, train__optim_d=None),
        train__optim_g__lr=1e-9,
        val__val_freq=1,
        val__patience=2,
        val__min_delta=0.01,
        logger__save_checkpoint_freq=100,
    )


def status(root: Path) -> dict:
    return json.loads((root / "experiments/tiny/status.json").read_text())


def test_a_run_that_no_longer_improves_is_finished_and_goes_on_only_with_more_patience(options, tmp_path):
    result = train_pipeline(options, root=tmp_path)
    assert result.iteration == 3  # the first figure, and two that were no better
    told = status(tmp_path)
    assert (told["state"], told["exit_code"], told["iteration"]) == ("finished", 0, 3)
    assert told["message"].startswith("stopped early: 2 validations since iteration 1 gave no better figure than ")
    (log,) = result.folder.glob("*.log")
    assert told["message"] in log.read_text()
    models = {file.name for file in (result.folder / "models").iterdir()}
    assert models >= {"net_g_3.pth", "net_g_latest.pth", "net_g_best.pth"}

    again = train_pipeline(options, root=tmp_path, auto_resume=True)
    assert again.iteration == 3 and status(tmp_path)["state"] == "finished"
    longer = changed(options, val__patience=4)
    assert train_pipeline(longer, root=tmp_path, auto_resume=True).iteration == 5
    assert train_pipeline(longer, root=tmp_path / "at once").iteration == 5
    states = [checkpoint_of(root / "experiments/tiny", 5) for root in (tmp_path, tmp_path / "at once")]
    assert differences(*states) == []


def test_the_end_is_no_early_one_where_figures_improve_or_patience_lasts(options, tmp_path):
    learning = changed(options, train__optim_g__lr=3e-3, val__patience=1, train__total_iter=5)
    assert train_pipeline(learning, root=tmp_path / "learning").iteration == 5
    last = changed(options, val__patience=2, train__total_iter=3)
    train_pipeline(last, root=tmp_path / "last")
    assert status(tmp_path / "last")["message"] == ""


def test_lower_may_be_better_and_small_gains_add_up(options, tmp_path, monkeypatch):
    from basicsr.engine.training_run import TrainingRun

    class Counting(TrainingRun):
        def __init__(self) -> None:  # the counter alone
            self.progress, self.iteration = {}, 0

    class Val:
        metrics = {"lpips": {"type": "calculate_psnr", "better": "lower"}}
        patience, min_delta = 2, 0.5

    run = Counting()
    run.options = type("Options", (), {"val": Val})()
    waited = []
    for run.iteration, value in enumerate((5.0, 4.6, 4.4, 4.9, 3.8), start=1):
        run.note_progress("lpips", value)
        waited.append((run.progress["waited"], run.out_of_patience))
    assert waited == [(0, False), (1, False), (0, False), (1, False), (0, False)]
    assert run.progress == {"value": 3.8, "iteration": 5, "waited": 0}


def test_two_ranks_end_together(options, tmp_path):
    run_ranks(train_rank_all, 2, [options], str(tmp_path))
    assert status(tmp_path)["iteration"] == 3 and status(tmp_path)["ranks"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets__val": None}, "val.patience: needs datasets.val: training ends when"),
        ({"val__patience": None}, "val.min_delta: means nothing without val.patience"),
        ({"val__patience": 0}, "val.patience: input should be greater than or equal to 1"),
    ],
)
def test_slips_are_refused(options, tmp_path, changes, message):
    with pytest.raises(OptionsError, match=message):
        train_pipeline(changed(options, **changes), root=tmp_path)
