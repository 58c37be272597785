"""scripts/upscale.py on videos, by a network that repeats each pixel."""

from __future__ import annotations

import importlib
import io
import resource
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.networks import nearest_edsr, save_checkpoint
from support.processes import start
from support.videos import make_video, packets_of

av = pytest.importorskip("av")

from basicsr.engine.process.command import run_command
from basicsr.inference.runner import ImageRunner
from basicsr.inference.upscaling import Upscaler
from basicsr.inference.video_upscaling import VideoJob, VideoSettings

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/upscale.py"


def colours(count: int, height: int = 22, width: int = 38) -> list[np.ndarray]:
    """Frames of one colour each, which is known in the result."""
    return [np.full((height, width, 3), (200, 5 * number, 60), np.uint8) for number in range(count)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for scale, channels in ((2, 3), (3, 3), (2, 1)):
        network, block = nearest_edsr(scale, channels)
        save_checkpoint(tmp_path / f"x{scale}_{channels}.pth", network, block, scale)
    return tmp_path


@pytest.fixture
def run(here, capsys):
    """Runs the command here; returns exit code, lines printed, and lines of errors."""
    upscale = importlib.import_module("upscale")

    def call(*arguments: object, model: str = "x2_3.pth", output: str = "out"):
        command = [*map(str, arguments), "--model", model, "--output", output, "--device", "cpu"]
        code = run_command(lambda: upscale.main(command))
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out.splitlines(), printed.err.splitlines()

    return call


def frames_of(path: Path | str) -> tuple[list[Fraction], list[np.ndarray]]:
    with av.open(str(path)) as container:
        shown = list(container.decode(video=0))
    return [frame.pts * frame.time_base for frame in shown], [frame.to_ndarray(format="rgb24") for frame in shown]


def told_aspect(stream: av.VideoStream, frame: av.VideoFrame) -> str:
    """The shape of pixels that a frame itself tells, by FFmpeg's filter `showinfo`."""
    graph = av.filter.Graph()
    source = graph.add_buffer(template=stream, time_base=stream.time_base)
    graph.link_nodes(source, graph.add("showinfo"), graph.add("buffersink")).configure()
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as lines:
            graph.vpush(frame)
            graph.vpull()
    finally:
        av.logging.set_level(None)
    return " ".join(text for _, _, text in lines).partition(" sar:")[2].split()[0]


class TestWhatIsKept:
    def test_pictures_times_sound_subtitles_and_shape_of_pixels(self, run, here):
        times = [512 * i + 100 * (i % 2) for i in range(10)]
        given = make_video(here / "a.mp4", colours(10), pts=times, sound=True, subtitles=True, aspect=Fraction(4, 3))
        code, lines, _ = run("a.mp4", "--part_frames", 4)
        assert code == 0
        assert lines[1].startswith("a.mp4: 38x22 -> 76x44, 10 frames, ")
        assert "variable frames a second; audio aac and subtitle mov_text copied" in lines[1]
        result = here / "out/a_x2.mp4"
        found, pixels = frames_of(result)
        assert found == [Fraction(time, 12800) for time in times]
        for before, after in zip(colours(10), pixels, strict=True):
            assert np.abs(after.astype(int) - before[0, 0]).max() <= 3
        for kind in ("audio", "subtitles"):
            assert packets_of(result, kind) == packets_of(given, kind)
        with av.open(str(result)) as container:
            stream = container.streams.video[0]
            assert stream.sample_aspect_ratio == Fraction(4, 3)
            assert stream.codec_context.name == "h264"
            assert container.streams.audio[0].metadata["language"] == "eng"
        assert not (here / "out/a_x2.mp4.parts").exists()

    @pytest.mark.parametrize("model, scale", [("x3_3.pth", 3), ("x2_1.pth", 2)])
    @pytest.mark.parametrize("options", [("--video_codec", "hevc"), ("--video_codec", "ffv1")])
    def test_other_codecs_and_networks(self, run, here, model, scale, options):
        make_video(here / "a.mkv", colours(3, 35, 37), layout="yuv444p")
        code, _, errors = run("a.mkv", *options, "--tile", 16, "--scale", scale, model=model)
        assert (code, errors) == (0, []), "\n".join(errors)
        _, pixels = frames_of(here / f"out/a_x{scale}.mkv")
        assert [frame.shape for frame in pixels] == [(35 * scale, 37 * scale, 3)] * 3
        for frame, given in zip(pixels, colours(3), strict=True):
            assert np.abs(frame.astype(int) - given[0, 0]).max() <= 4

    @pytest.mark.parametrize("kind", ["mkv", "mp4"])
    def test_the_shape_of_pixels_is_kept_without_loss_too_and_told_where_players_may_miss_it(self, run, here, kind):
        make_video(here / "a.mp4", colours(2), aspect=Fraction(4, 3))
        _, lines, _ = run("a.mp4", "--video_codec", "ffv1", "--video_format", kind)
        assert ("the shape of pixels stands in the frames" in lines[1]) == (kind == "mkv")
        with av.open(str(here / f"out/a_x2.{kind}")) as container:
            stream = container.streams.video[0]
            assert stream.sample_aspect_ratio == (Fraction(4, 3) if kind == "mp4" else None)
            assert told_aspect(stream, next(container.decode(stream))) == "4/3"

    def test_what_is_left_out_is_told(self, run, here):
        display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,500)"
        options = {"x264-params": f"mastering-display={display}:cll=1000,400"}
        hdr = make_video(here / "hdr.mp4", colours(2), layout="yuv420p10le", matrix=9, options=options)
        picture = io.BytesIO()
        Image.new("RGB", (16, 16)).save(picture, "JPEG")
        with av.open(str(hdr)) as given, av.open("a.mkv", "w") as container:
            stream = container.add_stream_from_template(given.streams.video[0])
            container.add_attachment("cover.jpg", "image/jpeg", picture.getvalue())
            container.add_attachment("letters.ttf", "application/x-truetype-font", b"font")
            for packet in given.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
        _, lines, _ = run("a.mkv")
        assert "; left out: attachment, cover; " in lines[1] and lines[1].endswith("; HDR metadata left out")

    def test_pictures_and_videos_of_a_folder_and_results_of_an_earlier_run(self, run, here):
        (here / "mixed").mkdir()
        make_video(here / "mixed/a.mkv", colours(2, 21, 37), codec="ffv1")
        Image.fromarray(colours(1)[0]).save(here / "mixed/b.png")
        for left_out in ((), ("2 left out: results of an earlier run",)):
            code, lines, errors = run("mixed", output="mixed")
            assert (code, errors) == (0, []), "\n".join(errors)
            assert [*lines[3:-1]] == [*left_out]
            assert lines[-1] == "2 upscaled, 0 failed"
        assert sorted(path.name for path in (here / "mixed").iterdir()) == ["a.mkv", "a_x2.mkv", "b.png", "b_x2.png"]
        _, lines, _ = run("mixed", "--skip_existing", output="mixed")
        assert lines[-1] == "0 upscaled, 0 failed, 2 skipped (there already)"


class _Stopped(Exception):
    pass


def job(here: Path, count: int, *, stop_after: int | None = None, error: type = KeyboardInterrupt) -> VideoJob:
    """A job on a.mp4; its network raises an error after some frames, and counts them in `network.calls`."""
    network, _ = nearest_edsr(2)
    runner = ImageRunner(network, 2, torch.device("cpu"))

    def to_array(lq: torch.Tensor, dtype: type) -> np.ndarray:
        job.calls += 1
        if stop_after is not None and job.calls > stop_after:
            raise error
        return runner.to_array(lq, dtype)

    job.calls = 0
    settings = VideoSettings("h264", 18, "medium", count, {"--model": "a digest"})
    return VideoJob(str(here / "a.mp4"), here / "a_x2.mp4", Upscaler(to_array, 2, 3), settings, lambda line: None)


class TestGoingOn:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, _Stopped])
    def test_a_stopped_run_goes_on_after_its_last_part_to_the_same_bytes(self, here, error):
        make_video(here / "a.mp4", colours(11), sound=True)
        job(here, 4).run()
        whole = (here / "a_x2.mp4").read_bytes()
        (here / "a_x2.mp4").unlink()
        with pytest.raises(error):
            job(here, 4, stop_after=9, error=error).run()
        assert not (here / "a_x2.mp4").exists()
        parts = here / "a_x2.mp4.parts"
        assert sorted(path.name for path in parts.glob("*.nut")) == ["000000.nut", "000001.nut"]
        job(here, 4).run()
        assert job.calls == 3
        assert (here / "a_x2.mp4").read_bytes() == whole
        assert not parts.exists()

    def test_a_damaged_part_and_all_after_it_are_made_again(self, here):
        make_video(here / "a.mp4", colours(11))
        with pytest.raises(KeyboardInterrupt):
            job(here, 2, stop_after=9).run()
        second = here / "a_x2.mp4.parts/000001.nut"
        second.write_bytes(second.read_bytes()[:-3])
        job(here, 2).run()
        assert job.calls == 9
        assert len(frames_of(here / "a_x2.mp4")[1]) == 11

    def test_what_differs_from_the_parts_is_named_and_nothing_lost(self, run, here):
        make_video(here / "a.mp4", colours(11))
        with pytest.raises(KeyboardInterrupt):
            job(here, 2, stop_after=9).run()
        parts = here / "a_x2.mp4.parts"
        before = sorted((path.name, path.stat().st_size) for path in parts.glob("*.nut"))
        code, _, errors = run("a.mp4", "--crf", 20, "--part_frames", 2, output=".")
        assert code == 3
        assert len(errors) == 1
        assert "holds parts of a run with another" in errors[0]
        assert "--model" in errors[0]
        assert "--crf" in errors[0]
        assert "--preset" not in errors[0]
        assert sorted((path.name, path.stat().st_size) for path in parts.glob("*.nut")) == before

    def test_ctrl_c_ends_the_command_and_the_same_command_goes_on(self, run, here):
        make_video(here / "a.mp4", colours(40, 64, 64))
        command = [sys.executable, str(SCRIPT), "a.mp4", "--model", "x2_3.pth", "--output", ".", "--part_frames", "1"]
        process = start(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not (here / "a_x2.mp4.parts/000001.nut").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
        assert (process.returncode, errors.strip()) == (130, "interrupted")
        assert "frames are kept; the same command goes on from there" in printed
        assert not (here / "a_x2.mp4").exists()
        code, lines, errors = run("a.mp4", "--part_frames", 1, output=".")
        assert (code, errors) == (0, []), "\n".join(errors)
        assert lines[1].startswith("a.mp4: goes on after ")
        assert len(frames_of(here / "a_x2.mp4")[1]) == 40


class TestMistakes:
    @pytest.mark.parametrize(
        "arguments, expected",
        [
            (("--crf", 60), "--crf 60: give a number from 0 to 51"),
            (("--video_codec", "ffv1", "--crf", 3), "--crf 3: ffv1 is lossless"),
            (("--part_frames", 0), "--part_frames 0: give 1 or more"),
            (("--video_codec", "ffv1", "--video_format", "mov"), "--video_format mov does not hold ffv1"),
        ],
    )
    def test_values_that_do_not_fit(self, run, here, arguments, expected):
        code, _, errors = run("a.mp4", *arguments)
        assert code == 2
        assert expected in errors[0]

    def test_what_a_container_does_not_hold_is_told_before_the_work(self, run, here):
        make_video(here / "a.mp4", colours(2), subtitles=True)
        code, _, errors = run("a.mp4", "--video_format", "mkv")
        assert code == 3
        assert errors == [
            "error: a.mp4: h264, subtitle (mov_text) do not all fit into mkv; choose another --video_format"
        ]
        assert list((here / "out").iterdir()) == []

    def test_sizes_at_which_x265_may_crash_are_refused(self, run, here):
        make_video(here / "a.mp4", colours(2))
        code, _, errors = run("a.mp4", "--video_codec", "hevc")
        assert code == 3
        assert errors == [
            "error: a.mp4 would become 76x44, x265 may crash below 64 pixels a side; use --video_codec h264"
        ]

    def test_a_disk_that_is_full_leaves_nothing_half_written(self, run, here):
        rng = np.random.default_rng(0)
        make_video(here / "a.mp4", list(rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            code, _, errors = run("a.mp4")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert code == 3
        assert len(errors) == 1
        assert "File too large; make room or choose another --output folder" in errors[0]
        assert list((here / "out").iterdir()) == []

    def test_without_pyav_pictures_of_a_folder_are_upscaled_and_videos_named(self, run, here, monkeypatch):
        (here / "mixed").mkdir()
        make_video(here / "mixed/a.mp4", colours(2))
        Image.fromarray(colours(1)[0]).save(here / "mixed/b.png")
        monkeypatch.setitem(sys.modules, "av", None)
        code, lines, errors = run("mixed")
        assert code == 0
        assert errors == [
            "warning: 1 video (mixed/a.mp4) not read; videos need PyAV, not installed here: pip install -e '.[video]'"
        ]
        assert lines[-1] == "1 upscaled, 0 failed"
        code, _, errors = run("mixed/a.mp4", "mixed/b.png")
        assert code == 6
        assert errors == ["error: mixed/a.mp4: videos need PyAV, not installed here: pip install -e '.[video]'"]

    def test_a_broken_video_is_one_line_and_the_others_are_done(self, run, here):
        (here / "mixed").mkdir()
        (here / "mixed/a.mp4").write_text("words")
        make_video(here / "mixed/b.mp4", colours(2))
        code, lines, errors = run("mixed")
        assert code == 3
        assert len(errors) == 1
        assert errors[0].startswith("error: cannot read video mixed/a.mp4: it is damaged or no video")
        assert lines[-1] == "1 upscaled, 1 failed"
        assert sorted(path.name for path in (here / "out").iterdir()) == ["b_x2.mp4"]
