"""Upscaling a video part by part, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError
from filelock import FileLock, Timeout
from tqdm import tqdm

from basicsr.files.atomic_files import TEMPORARY, sha256_of
from basicsr.inference.pictures import OutputError, Picture, write_with
from basicsr.inference.upscaling import Upscaler, check_memory
from basicsr.inference.video_files import Frame, VideoFile, is_cover, reason_of
from basicsr.inference.video_writing import COPIED, Encoding, Part, check, codec_of, copied_streams, join, write_part
from basicsr.utils.errors import DataError
from basicsr.utils.text import printable

_MUXERS = {"mp4": "mp4", "mov": "mov", "mkv": "matroska"}
_STATE = "job.json"
_ASPECT_IN_FRAMES = (  # for PyAV cannot tell FFmpeg's writer of Matroska
    "the shape of pixels stands in the frames, not in the mkv file, where some players look: --video_format mp4"
)
_REPORTED_EVERY = 60.0  # seconds, where no terminal shows a bar


@dataclass(frozen=True)
class VideoSettings:
    """How videos are written; `crf` None for a lossless codec. `made_of` names all else that the frames follow from."""

    codec: str
    crf: int | None
    preset: str
    part_frames: int
    made_of: dict[str, Any]


@dataclass(frozen=True)
class Upscaled:
    """What became of a video: sizes as `WIDTHxHEIGHT`, frames, and remarks."""

    before: str
    after: str
    frames: int
    notes: tuple[str, ...]


class VideoJob:
    """A video on its way to `target`, in parts in the folder TARGET.parts, which is removed in the end."""

    def __init__(
        self, name: str, target: Path, upscaler: Upscaler, settings: VideoSettings, say: Callable[[str], None]
    ) -> None:
        self._video = VideoFile(name)
        check_memory(name, self._video, upscaler.scale)
        self._name, self._target, self._upscaler = name, target, upscaler
        self._settings, self._say = settings, say
        self._kind = _MUXERS[target.suffix[1:]]
        self._encoding = Encoding(
            settings.codec,
            settings.crf,
            settings.preset,
            self._video.width * upscaler.scale,
            self._video.height * upscaler.scale,
            self._video,
        )
        self._folder = target.with_name(f"{target.name}.parts")
        self._parts: dict[str, Part] = {}
        self._digests: dict[str, str] = {}

    def run(self) -> Upscaled:
        """Upscales what is not done yet, and joins the parts.

        Raises DataError if the video cannot be used, or parts of other settings are there; OutputError if results
        cannot be written.
        """
        check(self._kind, self._encoding)
        with self._held():
            self._resume()
            try:
                self._upscale()
            except KeyboardInterrupt:
                self._say(f"{self._name}: {self._done:,d} frames are kept; the same command goes on from there")
                raise
            files = {str(self._folder / name): part for name, part in self._parts.items()}
            with self._muxing():
                write_with(self._target, lambda file: join(file, self._kind, files, self._encoding))
        shutil.rmtree(self._folder, ignore_errors=True)
        video = self._video
        kinds = "variable" if video.is_variable else f"{float(video.rate):.5g}"
        with video.open() as container:
            others = [f"{stream.type} {codec_of(stream)}" for stream in copied_streams(container)]
            left_out = [stream.type for stream in container.streams if stream.type not in ("video", *COPIED)]
            left_out += ["cover" for stream in container.streams.video if is_cover(stream)]
        notes = [f"{kinds} frames a second"]
        notes += [f"{' and '.join(others)} copied"] * bool(others)
        notes += [f"left out: {', '.join(left_out)}"] * bool(left_out)
        if self._settings.codec == "ffv1" and self._kind == "matroska" and video.pixel_aspect != 1:
            notes.append(_ASPECT_IN_FRAMES)
        return Upscaled(
            f"{video.width}x{video.height}",
            f"{self._encoding.padded_width}x{self._encoding.padded_height}",
            self._done,
            (*notes, *video.notes, *self._encoding.notes),
        )

    @property
    def _done(self) -> int:
        return sum(part.frames for part in self._parts.values())

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Makes the folder of the parts, and keeps other processes out of it."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._folder / "lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise DataError(f"{printable(str(self._folder))}: another process works on it; wait or end it") from error
        except OSError as error:
            raise OutputError(f"cannot write {self._folder}: {error.strerror}; choose another --output") from error
        try:
            yield
        finally:
            lock.release()
            if not any(self._folder.glob("*.nut")):
                shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def _muxing(self) -> Iterator[None]:
        """An error of FFmpeg while it writes, but for those of the disk, is one line."""
        try:
            yield
        except (FFmpegError, ValueError) as error:
            if isinstance(error, (OSError, DataError)):
                raise
            raise DataError(
                f"{self._name} cannot be written: {reason_of(error)}; try another --video_format"
            ) from error

    def _resume(self) -> None:
        """Takes over the parts of an earlier run, up to the first that is damaged; DataError if made otherwise."""
        for file in self._folder.glob(TEMPORARY):
            file.unlink(missing_ok=True)
        made_of = self._made_of = self._find_made_of()
        try:
            state = json.loads((self._folder / _STATE).read_bytes())
            before, entries = state["made_of"], state["parts"]
            differing = [key for key in made_of if before.get(key) != made_of[key]]
            parts = {name: (Part(**entry["part"]), entry["sha256"]) for name, entry in entries.items()}
        except FileNotFoundError:
            return
        except (ValueError, TypeError, KeyError, AttributeError, OSError):
            self._say(f"{self._name}: the record of its parts is damaged; begun anew")
            return
        if differing:
            raise DataError(
                f"{self._name}: {printable(str(self._folder))} holds parts of a run with another"
                f" {', '.join(differing)}; give the same, or delete that folder to begin anew"
            )
        for name, (part, digest) in parts.items():
            file = self._folder / name
            if not file.is_file() or sha256_of(file) != digest:
                break
            self._parts[name], self._digests[name] = part, digest
        if self._parts:
            self._say(f"{self._name}: goes on after {self._done:,d} frames")

    def _find_made_of(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "input": sha256_of(Path(self._name)),
            **settings.made_of,
            "--video_codec": settings.codec,
            "--crf": settings.crf,
            "--preset": settings.preset,
            "--part_frames": settings.part_frames,
            "PyAV": av.__version__,
        }

    def _upscale(self) -> None:
        """Writes the parts that are missing."""
        frames = self._video.frames(self._done)
        start, reported, first = time.monotonic(), time.monotonic(), self._done
        with tqdm(
            total=self._video.total, initial=first, desc="frames", unit="", position=2, leave=False, disable=None
        ) as bar:

            def enlarged(given: Iterator[Frame]) -> Iterator[Frame]:
                for frame in given:
                    pixels = self._upscaler(Picture(frame.pixels)).pixels
                    yield Frame(pixels, frame.pts, frame.duration)
                    bar.update()

            while True:
                name = f"{len(self._parts):06d}.nut"
                part = self._write_part(name, enlarged(islice(frames, self._settings.part_frames)))
                if part is None:
                    break
                self._parts[name] = part
                self._save_state()
                now = time.monotonic()
                if bar.disable and now - reported > _REPORTED_EVERY:
                    reported, speed = now, (self._done - first) / (now - start)
                    left = max(0, self._video.total - self._done) / speed
                    self._say(
                        f"{self._name}: {self._done:,d} of {self._video.total:,d} frames, {speed:.3g} a second,"
                        f" {left / 60:.0f} min left"
                    )

    def _write_part(self, name: str, frames: Iterator[Frame]) -> Part | None:
        """Writes a part; None, and no file, if there are no more frames."""
        first = next(frames, None)
        if first is None:
            return None
        written: list[Part] = []

        def write(file: Any) -> None:
            part = write_part(file, chain([first], frames), self._encoding)
            written.append(part)

        with self._muxing():
            self._digests[name] = write_with(self._folder / name, write)
        return written[0]

    def _save_state(self) -> None:
        entries = {name: {"part": asdict(part), "sha256": self._digests[name]} for name, part in self._parts.items()}
        content = json.dumps({"made_of": self._made_of, "parts": entries}, indent=1).encode()
        write_with(self._folder / _STATE, lambda file: file.write(content))
