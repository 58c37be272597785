"""Training curves: which figures, what is drawn, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image
from plot_curves import RunHistory, choose_keys, curves_figure, main, read_runs, smoothed

from basicsr.engine.process.command import run_command
from basicsr.utils.errors import DataError, OptionsError


def write_run(root: Path, name: str, psnr: float, losses: str = "l_pix") -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    lines: list[dict[str, float]] = []
    for iteration in range(100, 1001, 100):
        lines.append({"iter": iteration, f"losses/{losses}": 50 / iteration, "lr/student": 1e-4, "time/data": 0.01})
        if iteration % 500 == 0:
            lines.append({"iter": iteration, "metrics/Set5/psnr": psnr + iteration / 1000, "metrics/Set5/ssim": 0.9})
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def folders(tmp_path):
    return [write_run(tmp_path, "distilled", 31.0), write_run(tmp_path, "scratch", 30.0)]


def test_the_lines_are_the_histories_figures(folders):
    figure = curves_figure(read_runs(folders), ["metrics/Set5/psnr", "losses/l_pix"])
    first, second = figure.axes
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in first.lines] == [
        ([500, 1000], [31.5, 32.0]),
        ([500, 1000], [30.5, 31.0]),
    ]
    assert list(second.lines[0].get_ydata()) == [50 / iteration for iteration in range(100, 1001, 100)]
    assert (first.get_title(loc="left"), first.get_ylabel()) == ("Set5", "PSNR (dB)")
    assert (first.get_xlabel(), second.get_yscale()) == ("iteration", "log"), "a loss that falls to a tenth"
    assert first.get_xlim() == second.get_xlim()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["distilled", "scratch"]


def test_runs_are_told_apart_without_colours(tmp_path):
    runs = [RunHistory(str(index), [{"iter": 1, "a": 1.0}, {"iter": 2, "a": 2.0}]) for index in range(12)]
    lines = curves_figure(runs, ["a"]).axes[0].lines
    styles = {(str(line.get_linestyle()), str(line._unscaled_dash_pattern), line.get_marker()) for line in lines}
    assert len(styles) == 12
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 12


def test_a_run_without_a_figure_is_left_out_of_its_panel_only(tmp_path):
    folders = [write_run(tmp_path, "a", 30.0), write_run(tmp_path, "b", 31.0, losses="l_other")]
    figure = curves_figure(read_runs(folders), ["losses/l_other", "metrics/Set5/psnr"])
    assert [len(axes.lines) for axes in figure.axes] == [1, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_smoothing_leaves_metrics_as_they_are(folders):
    figure = curves_figure(read_runs(folders[:1]), ["metrics/Set5/psnr", "losses/l_pix"], smooth=0.5)
    metrics, losses = figure.axes
    assert len(metrics.lines) == 1
    raw, average = losses.lines
    assert list(average.get_ydata()) == smoothed(list(raw.get_ydata()), 0.5)


def test_the_exponential_average_by_hand():
    """(w a + b) / (w + 1) for two values, and so on: each value weighs w times the next."""
    assert smoothed([4.0, 1.0, 7.0], 0.5) == pytest.approx(
        [4.0, (0.5 * 4 + 1) / 1.5, (0.25 * 4 + 0.5 * 1 + 7) / 1.75], rel=1e-12
    )
    assert smoothed([3.0, 1.0], 0.0) == [3.0, 1.0]
    assert smoothed([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0] * 3)
    first, second = smoothed([math.nan, 5.0], 0.9)
    assert math.isnan(first) and second == pytest.approx(5.0)


def test_metrics_and_the_pixel_loss_are_drawn_by_default(folders):
    runs = read_runs(folders)
    assert choose_keys(runs, []) == ["metrics/Set5/psnr", "metrics/Set5/ssim", "losses/l_pix"]
    assert choose_keys(runs, ["lr/*", "metrics/*/psnr", "lr/student"]) == ["lr/student", "metrics/Set5/psnr"]
    with pytest.raises(OptionsError, match=r"no run has 'metrics/Set5/psn' \(did you mean 'metrics/Set5/psnr'\?\)"):
        choose_keys(runs, ["metrics/Set5/psn"])


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    folders = [write_run(tmp_path / "one", "same", 30.0), write_run(tmp_path / "two", "same", 31.0)]
    assert [run.name for run in read_runs(folders)] == [str(folder) for folder in folders]


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_command_writes_each_format(folders, tmp_path, ending, capsys):
    output = tmp_path / "plots" / f"curves.{ending}"
    assert main([*map(str, folders), "--output", str(output), "--smooth"]) == 0
    assert capsys.readouterr().out.startswith(f"{output}: metrics/Set5/psnr, metrics/Set5/ssim, losses/l_pix of ")
    content = output.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])
    if ending == "png":
        with Image.open(output) as image:
            assert image.width > 2 * image.height > 500
    if ending == "svg":
        assert b">distilled<" in content and b">PSNR (dB)<" in content
    assert [file.name for file in output.parent.iterdir()] == [output.name]


def test_mistakes_are_told_in_one_line_and_nothing_is_written(folders, tmp_path, capsys, monkeypatch):
    def refused(*arguments: str) -> str:
        assert run_command(lambda: main(list(arguments))) in (2, 3)
        (line,) = capsys.readouterr().err.splitlines()
        return line

    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    run, empty = map(str, folders)
    assert "there is no folder nowhere" in refused("nowhere")
    assert "has no history.jsonl: no training run's folder" in refused(str(tmp_path))
    assert "its ending must be one of .png, .svg, .pdf" in refused(run, "--output", "curves.gif")
    assert "--smooth 1: the weight must be at least 0 and less than 1" in refused(run, "--smooth", "1")
    assert "no run has 'loss'" in refused(run, "--keys", "loss")
    assert sorted(tmp_path.rglob("*")) == before
    Path(empty, "history.jsonl").write_text("")
    assert "holds no figures yet" in refused(empty)


def test_a_link_to_itself_is_no_run(tmp_path):
    (tmp_path / "run").symlink_to("run")
    with pytest.raises(DataError, match=r"^there is no folder .*run; "):
        read_runs([tmp_path / "run"])
