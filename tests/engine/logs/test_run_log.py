"""What a run tells: the names of figures, who gets them, and pictures for comparison."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from basicsr.engine.logs import run_log
from basicsr.engine.logs.metric_writers import centre, side_by_side
from basicsr.engine.logs.run_log import RunLog
from basicsr.utils.errors import CheckpointError


class Recorder:
    """A sink that keeps what it is given."""

    def __init__(self, shows_images, needed=True, failure=None):
        self.needed, self.failure = needed, failure
        self.shows_images, self.given, self.images, self.exit_code = shows_images, [], [], None

    def scalars(self, iteration, values):
        if self.failure is not None:
            raise self.failure
        self.given.append((iteration, dict(values)))

    def image(self, name, iteration, image):
        self.images.append((name, iteration, image))

    def close(self, exit_code):
        self.exit_code = exit_code


def test_all_sinks_get_the_same_names(caplog):
    sinks = [Recorder(False), Recorder(True)]
    log = RunLog(logging.getLogger("test_run_log"), "run", 0, 10, sinks, lambda dataset, output: output + 1)
    caplog.set_level(logging.INFO)
    log.step(5, 0, {"student": 0.1, "heads": 0.2}, {"l_pix": 0.5, "l_total": 1.5}, 0.01)
    log.metrics(5, {"Set5": {"psnr": 30.0}, "Set14": {"psnr": 28.0, "ssim": 0.8}})
    log.metrics(5, {})
    log.comparison("Set5", "baby", 5, np.zeros((4, 4, 3), np.uint8))
    log.close(75)
    assert "lr:(student 1.000e-01, heads 2.000e-01)" in caplog.text
    assert sinks[0].given == sinks[1].given
    (step, figures), (_, metrics) = sinks[0].given
    names = ["losses/l_pix", "losses/l_total", "lr/student", "lr/heads", "time/iteration", "time/data"]
    assert step == 5 and list(figures) == names
    assert metrics == {"metrics/Set5/psnr": 30.0, "metrics/Set14/psnr": 28.0, "metrics/Set14/ssim": 0.8}
    assert sinks[0].images == [], "text holds no images"
    ((name, iteration, image),) = sinks[1].images
    assert (name, iteration, image.max()) == ("images/Set5/baby", 5, 1)
    assert [sink.exit_code for sink in sinks] == [75, 75]


def test_how_far_a_run_is_shows_soon_whatever_print_freq(monkeypatch, caplog):
    """Iterations of 4 seconds of which 25 are printed: the first line after ten seconds, then one each minute."""
    clock = [0.0]
    monkeypatch.setattr(run_log, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    caplog.set_level(logging.INFO)
    log = RunLog(logging.getLogger("test_run_log"), "run", 0, 1000)
    for iteration in range(1, 46):
        clock[0] += 4
        log.tick()
        if iteration == 25:
            log.step(iteration, 0, {"student": 0.1}, {"l_total": 1.0}, 0.0)
    told = [record.message.replace(" ", "") for record in caplog.records]
    assert told[0] == "[run..][iter:3of1,000][eta:1:06:28,time:4.000]"
    assert [line.split("iter:")[1].split("of")[0].split(",")[0] for line in told] == ["3", "18", "25", "40"]


def test_what_is_not_needed_and_cannot_be_written_is_left_out_with_one_warning(caplog):
    failure = CheckpointError("cannot write TensorBoard's files: No space left on device")
    broken, sound = Recorder(True, needed=False, failure=failure), Recorder(False)
    log = RunLog(logging.getLogger("test_run_log"), "run", 0, 10, [broken, sound])
    for iteration in (1, 2):
        log.metrics(iteration, {"Set5": {"psnr": 30.0}})
    log.close(0)
    assert [iteration for iteration, _ in sound.given] == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [f"{failure}; training goes on without them"]
    with pytest.raises(CheckpointError, match="No space left"):
        RunLog(logging.getLogger("test_run_log"), "run", 0, 10, [Recorder(False, failure=failure)]).metrics(
            1, {"Set5": {"psnr": 30.0}}
        )


def test_nothing_is_compared_where_nothing_shows_images():
    log = RunLog(logging.getLogger("test_run_log"), "run", 0, 10, [Recorder(False)], lambda *_: pytest.fail("compared"))
    log.comparison("Set5", "baby", 5, np.zeros((4, 4, 3), np.uint8))
    log.close()


def test_columns_stand_side_by_side_below_their_names():
    columns = {"one": np.full((30, 40, 3), 10, np.uint8), "two": np.full((30, 50, 3), 20, np.uint8)}
    picture = side_by_side(columns)
    assert picture.shape == (52, 94, 3) and picture.dtype == np.uint8
    assert (picture[22:, :40] == 10).all() and (picture[22:, 44:] == 20).all()
    assert (picture[22:, 40:44] == 255).all()
    assert (picture[:22, :40] < 128).any() and (picture[:22, 44:] < 128).any(), "the names"


def test_of_large_images_the_middle_is_shown():
    rows, columns = np.mgrid[:600, :1000]
    image = np.stack([rows // 4, columns // 4, rows * 0], axis=2).astype(np.uint8)
    middle = centre(image)
    assert middle.shape == (512, 512, 3)
    assert np.array_equal(middle, image[44:556, 244:756])
    assert centre(np.zeros((20, 30), np.uint8)).shape == (20, 30, 3)
