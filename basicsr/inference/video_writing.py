"""Video files written in parts that are joined without loss, with the other streams of the file they came from.

Each part is encoded by an encoder of its own, so it depends on its frames only. NUT keeps times exactly.
"""

from __future__ import annotations

import heapq
import io
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.error import FFmpegError

from basicsr.inference.video_files import ANY_UNIT, EXACT, Frame, VideoFile, reason_of, scaling
from basicsr.utils.errors import DataError, MachineError

CODECS = {"h264": "libx264", "hevc": "libx265", "ffv1": "ffv1"}
"""Codecs of results, and FFmpeg's encoders of them; FFV1 is lossless."""
_DEEPEST = {"h264": 10, "hevc": 12, "ffv1": 16}
_DEPTHS = (8, 10, 12, 16)
_OF_THE_FILE = ("encoder", "major_brand", "minor_version", "compatible_brands", "duration")  # not of what it holds
_LEAST_HEVC = 64  # x265 writes beyond its memory at 40x30
_ENDINGS = {"matroska": "mkv"}
COPIED = ("audio", "subtitle")
_OF_A_STREAM = ("language", "title", "handler_name")


@dataclass(frozen=True)
class Encoding:
    """How frames are written: `width` and `height` are those of the frames, made even where chroma is halved."""

    codec: str
    crf: int | None
    preset: str
    width: int
    height: int
    video: VideoFile

    @property
    def layout(self) -> str:
        """FFmpeg's name of the pixels: chroma and depth of the source, as far as the codec goes."""
        return f"yuv{self.video.subsampling}p" + (f"{self.depth}le" if self.depth > 8 else "")

    @property
    def depth(self) -> int:
        """Bits of a number as written."""
        return next(depth for depth in _DEPTHS if depth >= min(self.video.depth, _DEEPEST[self.codec]))

    @property
    def notes(self) -> list[str]:
        """What is lost or added."""
        notes = []
        if self.video.depth > _DEEPEST[self.codec]:
            notes.append(f"{self.video.depth} bits became {_DEEPEST[self.codec]}")
        if (self.padded_width, self.padded_height) != (self.width, self.height):
            notes.append(f"an edge repeated: {self.codec} takes even sizes only")
        return notes

    @property
    def padded_width(self) -> int:
        """The width as written."""
        return self.width + (self.width % 2 if self.video.subsampling != "444" else 0)

    @property
    def padded_height(self) -> int:
        """The height as written."""
        return self.height + (self.height % 2 if self.video.subsampling == "420" else 0)

    @property
    def options(self) -> Mapping[str, str]:
        """Options of the encoder."""
        if self.codec == "ffv1":
            return {"level": "3", "slicecrc": "1"}
        quiet = {"x265-params": "log-level=none"} if self.codec == "hevc" else {}
        return {"crf": str(self.crf), "preset": self.preset, **quiet}

    def set_on(self, context: Any) -> None:
        """What a decoder must know of the pixels, on a context of a codec."""
        colours = self.video.colours
        context.framerate = self.video.rate
        context.sample_aspect_ratio = self.video.pixel_aspect
        context.colorspace, context.color_range = colours.matrix, colours.range
        context.color_primaries, context.color_trc = colours.primaries, colours.transfer

    def to_layout(self) -> Any:
        """FFmpeg's scaler from what `frame_of` makes to the layout."""
        size = self.padded_width, self.padded_height
        colours, given = self.video.colours, self.video.layout
        before = ":in_range=pc" if self.video.channels == 1 else ""
        if self.video.bits == 16:
            given, before = "yuv444p16le", f":in_color_matrix={colours.matrix_name}:in_range={colours.range_name}"
        return scaling(*size, given, f"{EXACT}{before}{colours.unchanged}", self.layout, self.video.pixel_aspect)

    def frame_of(self, pixels: np.ndarray) -> Any:
        """PyAV's frame of an array (H, W, C)."""
        down, right = self.padded_height - pixels.shape[0], self.padded_width - pixels.shape[1]
        if down or right:
            pixels = np.pad(pixels, ((0, down), (0, right), (0, 0)), mode="edge")
        layout = self.video.layout
        if self.video.bits == 16:
            pixels, layout = self.video.colours.from_rgb(pixels, self.depth), "yuv444p16le"
        if pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=layout)
        frame.pts, frame.time_base = 0, ANY_UNIT
        return frame


@dataclass(frozen=True)
class Part:
    """A part that is written: its frames, the first one's time, the last one's duration, in units of the source.

    `delay` is how many frames at most are decoded before one that is shown earlier.
    """

    frames: int
    first: int
    duration: int
    delay: int


def write_part(file: BinaryIO, frames: Iterable[Frame], encoding: Encoding) -> Part:
    """Encodes frames into a file, of which there is one at least, in memory that does not grow."""
    shown: list[int] = []
    decoded: list[int] = []
    duration = 0
    convert = encoding.to_layout()
    with _open_to_write(file, "nut", {"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream(CODECS[encoding.codec], rate=encoding.video.rate)
        stream.width, stream.height, stream.pix_fmt = encoding.padded_width, encoding.padded_height, encoding.layout
        stream.options = dict(encoding.options)
        # Slices, PyAV's choice, would make x264 code the parts of an image one apart from another, which costs quality.
        stream.thread_type = "SLICE" if encoding.codec == "ffv1" else "FRAME"
        encoding.set_on(stream.codec_context)
        stream.codec_context.time_base = encoding.video.time_base

        def put(packets: list[Any]) -> None:
            decoded.extend(packet.pts for packet in packets)
            for packet in packets:
                # x265 sometimes decodes the only frame of a part after it is shown, which no container takes.
                packet.dts = min(packet.dts, packet.pts)
            container.mux(packets)

        for frame in frames:
            convert.vpush(encoding.frame_of(frame.pixels))
            converted = convert.vpull()
            converted.pts, converted.time_base = frame.pts, encoding.video.time_base
            put(stream.encode(converted))
            shown.append(frame.pts)
            duration = frame.duration
        put(stream.encode())
    place = {time: number for number, time in enumerate(sorted(decoded))}
    return Part(len(shown), shown[0], duration, max(number - place[time] for number, time in enumerate(decoded)))


def join(file: BinaryIO, kind: str, parts: Mapping[str, Part], encoding: Encoding) -> None:
    """Writes a container of `kind` (mp4, mov, matroska) of the files of parts and the source's sound and subtitles."""
    source = encoding.video
    with source.open() as original, _open_to_write(file, kind, {}) as container:
        start = Fraction(original.start_time or 0, av.time_base)
        stream, copies = _add_streams(container, original, next(iter(parts)), kind, encoding)
        container.metadata.update(
            {key: text for key, text in original.metadata.items() if key.lower() not in _OF_THE_FILE}
        )
        if chapters := original.chapters():
            container.set_chapters([_moved(chapter, start) for chapter in chapters])
        pictures = _pictures(parts, stream, source.time_base, start)
        for packet in heapq.merge(pictures, _copies(original, copies, start), key=_decoded_at):
            container.mux(packet)


def _add_streams(
    container: Any, original: Any, part: str | BinaryIO, kind: str, encoding: Encoding
) -> tuple[Any, dict[int, Any]]:
    """Adds the stream of pictures, and copies of others by their number in the source."""
    with av.open(part, format="nut") as opened:
        stream: Any = container.add_stream_from_template(opened.streams.video[0])
    stream.time_base = encoding.video.time_base
    encoding.set_on(stream.codec_context)
    if encoding.codec == "hevc" and kind in ("mp4", "mov"):
        stream.codec_context.codec_tag = "hvc1"  # Apple's players know no other
    copies = {}
    for other in copied_streams(original):
        copy = copies[other.index] = container.add_stream_from_template(other)
        copy.metadata.update({key: text for key, text in other.metadata.items() if key in _OF_A_STREAM})
        copy.disposition = other.disposition
    return stream, copies


def check(kind: str, encoding: Encoding) -> None:
    """Tries encoder and container with one frame, before the work; DataError or MachineError say what does not fit."""
    name = CODECS[encoding.codec]
    if name not in av.codec.codecs_available:
        known = [codec for codec, encoder in CODECS.items() if encoder in av.codec.codecs_available]
        raise MachineError(f"this build of PyAV has no {name}; use --video_codec {' or '.join(known)}")
    path = encoding.video.path
    if encoding.codec == "hevc" and min(encoding.width, encoding.height) < _LEAST_HEVC:
        raise DataError(
            f"{path} would become {encoding.width}x{encoding.height}, x265 may crash below {_LEAST_HEVC} pixels a side;"
            " use --video_codec h264"
        )
    part = io.BytesIO()
    shape = encoding.height, encoding.width, encoding.video.channels
    black = np.zeros(shape, np.uint8 if encoding.video.bits == 8 else np.uint16)
    try:
        write_part(part, [Frame(black, 0, 1)], encoding)
    except (FFmpegError, ValueError) as error:
        raise DataError(
            f"{path}: {name} does not take {encoding.width}x{encoding.height} pixels ({encoding.layout}) at --preset"
            f" {encoding.preset}: {reason_of(error)}; try another --video_codec or --preset"
        ) from error
    part.seek(0)
    with encoding.video.open() as original:
        others = [f"{stream.type} ({codec_of(stream)})" for stream in copied_streams(original)]
        try:
            with _open_to_write(io.BytesIO(), kind, {}) as container:
                _add_streams(container, original, part, kind, encoding)
                container.start_encoding()
        except (FFmpegError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"{path}: {', '.join([encoding.codec, *others])} do not all fit into {_ENDINGS.get(kind, kind)};"
                " choose another --video_format"
            ) from error


def copied_streams(container: Any) -> list[Any]:
    """The streams that a result takes over as they are: sound and subtitles."""
    return [stream for stream in container.streams if stream.type in COPIED]


def codec_of(stream: Any) -> str:
    """The name of a stream's codec."""
    return stream.codec_context.name if stream.codec_context is not None else "unknown"


def _open_to_write(file: BinaryIO, kind: str, options: Mapping[str, str]) -> Any:
    return av.open(file, "w", format=kind, container_options=dict(options))


def _pictures(parts: Mapping[str, Part], stream: Any, unit: Fraction, start: Fraction) -> Iterator[Any]:
    """The packets of all parts, with times in `unit`, less `start`.

    Encoders give decoding times that fit their own part only. Here they are the presentation times of all frames,
    later by as many frames as any is out of order.
    """
    shift = round(start / unit)
    entries = list(parts.values())
    delay = max(part.delay for part in entries)
    times = deque(entries[0].first - shift - back for back in range(delay, 0, -1))
    ends = [part.first - shift for part in entries[1:]]
    for file, end in zip(parts, [*ends, None], strict=True):
        with av.open(file, format="nut") as container:
            packets: list[Any] = [packet for packet in container.demux(video=0) if packet.size]
        for packet in packets:
            packet.pts = round(packet.pts * packet.time_base / unit) - shift
        shown = sorted(packet.pts for packet in packets)
        times.extend(shown)
        after = dict(zip(shown, [*shown[1:], shown[-1] + entries[-1].duration if end is None else end], strict=True))
        for packet in packets:
            packet.dts, packet.duration = times.popleft(), after[packet.pts] - packet.pts
            packet.time_base, packet.stream = unit, stream
            yield packet


def _copies(original: Any, copies: Mapping[int, Any], start: Fraction) -> Iterator[Any]:
    """The packets of copied streams, less `start`."""
    if not copies:
        return
    for packet in original.demux([original.streams[index] for index in copies]):
        if packet.dts is None and packet.pts is None:
            continue
        shift = round(start / packet.time_base)
        packet.dts = (packet.pts if packet.dts is None else packet.dts) - shift
        packet.pts = packet.dts if packet.pts is None else packet.pts - shift
        packet.stream = copies[packet.stream_index]
        yield packet


def _decoded_at(packet: Any) -> float:
    return float(packet.dts * packet.time_base)


def _moved(chapter: Mapping[str, Any], start: Fraction) -> dict[str, Any]:
    shift = round(start / chapter["time_base"])
    return {**chapter, "start": chapter["start"] - shift, "end": chapter["end"] - shift}
