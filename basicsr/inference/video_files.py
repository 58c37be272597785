"""Video files read frame by frame, with what is needed to write their like: times, colours, shape of a pixel.

PyAV holds FFmpeg's libraries in one wheel for every system. Pipes to a program would lose each frame's own time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.error import FFmpegError
from av.filter import Graph

from basicsr.files.regular_files import open_regular
from basicsr.utils.errors import DataError, UserError
from basicsr.utils.text import first_line, printable

# FFmpeg also knows playlists, which open other files and addresses, and pictures.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,mxf,nut,dv,rm,wtv,ivf,obu,m4v,h264,"
    "hevc,yuv4mpegpipe"
)
_RGB, _UNSPECIFIED, _BT601 = 0, 2, 6
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}
"""FFmpeg's numbers of colour matrices, and its scaler's names for them."""
_KR_KB = {
    "bt709": (0.2126, 0.0722),
    "bt601": (0.299, 0.114),
    "fcc": (0.30, 0.11),
    "smpte240m": (0.212, 0.087),
    "bt2020": (0.2627, 0.0593),
}
_LIMITED, _FULL = 1, 2
ANY_UNIT = Fraction(1, 25)
"""A unit of time for FFmpeg's graphs, which do not run without."""
EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
"""Of FFmpeg's scaler: rounds to the nearest level, and interpolates chroma in both directions."""
_HD_HEIGHT, _HD_WIDTH = 720, 1280  # from here on players take BT.709 where a file says nothing
_PROGRESSIVE = (0, 1)  # field orders: unknown, progressive
_DEEPEST = 16
_TOP = 65535
_SHORTER_BY = 2.0  # seconds: a file that ends so much before the end it names is cut short
_RATE_TOLERANCE = 0.05
_LARGEST_ASPECT = 1 << 16
_HDR = {"MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL", "DYNAMIC_HDR_PLUS", "DOVI_METADATA", "DOVI_RPU_BUFFER"}
"""PyAV's names of what frames tell of the display that they were made on."""
_LONGEST_HEADER = 4096
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_NO_RIFF_SIZE = 0xFFFFFFFF
_REPAIR = "copy it again, or keep what is intact by `ffmpeg -i IN -c copy OUT`"


@dataclass(frozen=True)
class Colours:
    """How numbers of a video mean colours: FFmpeg's numbers of matrix, range, primaries and transfer."""

    matrix: int
    range: int
    primaries: int
    transfer: int

    def to_rgb(self, yuv: np.ndarray, depth: int) -> np.ndarray:
        """(H, W, 3) of uint16, numbers of `depth` bits shifted to the top, to RGB; FFmpeg's own makes white 65283."""
        luma, chroma = self._spans(depth)
        kr, kb = _KR_KB[self.matrix_name]
        y = (yuv[..., 0] - np.float32(self._black)) / luma
        cb, cr = ((yuv[..., part] - np.float32(1 << 15)) / chroma for part in (1, 2))
        r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
        g = (y - kr * r - kb * b) / (1 - kr - kb)
        return np.rint(np.stack([r, g, b], axis=2).clip(0, 1) * _TOP).astype(np.uint16)

    def from_rgb(self, rgb: np.ndarray, depth: int) -> np.ndarray:
        """The reverse of `to_rgb`; (H, W, 1) is gray."""
        luma, chroma = self._spans(depth)
        kr, kb = _KR_KB[self.matrix_name]
        r, g, b = (rgb[..., part] / np.float32(_TOP) for part in (0, rgb.shape[2] // 2, -1))
        y = kr * r + (1 - kr - kb) * g + kb * b
        cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
        yuv = np.stack([y * luma + self._black, cb * chroma + (1 << 15), cr * chroma + (1 << 15)], axis=2)
        return np.rint(yuv.clip(0, _TOP)).astype(np.uint16)

    @property
    def _black(self) -> int:
        return 0 if self.range == _FULL else 16 << 8

    def _spans(self, depth: int) -> tuple[np.float32, np.float32]:
        """What 1 is of luma, and of chroma."""
        if self.range == _FULL:
            top = np.float32(_TOP + 1 - (1 << (_DEEPEST - depth)))
            return top, top
        return np.float32(219 << 8), np.float32(224 << 8)

    @property
    def matrix_name(self) -> str:
        """The matrix as FFmpeg's scaler names it."""
        return _MATRICES[self.matrix]

    @property
    def unchanged(self) -> str:
        """Options of FFmpeg's scaler that keep YUV as it is."""
        return f":out_color_matrix={self.matrix_name}:out_range={self.range_name}"

    @property
    def range_name(self) -> str:
        """`tv` (limited) or `pc` (full)."""
        return "pc" if self.range == _FULL else "tv"


@dataclass(frozen=True)
class Frame:
    """A frame: (H, W, C) of uint8 or uint16, gray or RGB, upright; its time and duration in units of the file."""

    pixels: np.ndarray
    pts: int
    duration: int


class VideoFile:
    """A video, opened and looked through without decoding all of it; DataError in one line where it cannot be used.

    Attributes:
        width, height: in pixels, upright.
        bits: 8 or 16, of the arrays that `frames` yields; `depth` is that of the file.
        channels: 1 for gray, else 3.
        is_rgb: whether the file holds RGB.
        subsampling: of chroma, "420", "422" or "444".
        total: frames, about; exactly for nearly all files.
        time_base: the unit of times, in seconds.
        rate: frames a second, on average; `is_variable` tells whether they differ.
        pixel_aspect: width of a pixel by its height, upright.
        colours: of the result, which is written as the file is; guessed, as players do, where the file says nothing.
        notes: what is lost or was guessed.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._name = printable(path)
        try:
            with open_regular(path) as file:
                size, announced = os.fstat(file.fileno()).st_size, announced_size(file)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise self.error(reason) from error
        self.notes: list[str] = []
        with self.open() as container:
            self._look_through(container)
        if announced is not None and size < announced:
            raise self.error(f"it is cut short: {size:,d} of {announced:,d} bytes are there; {_REPAIR}")
        with self.open() as container, self.decoding():
            stream = self._stream_of(container)
            first = next(container.decode(stream), None)
            if first is None:
                raise self.error("none of its frames can be decoded")
            self._describe(first, stream)

    @property
    def layout(self) -> str:
        """FFmpeg's name of the arrays that `frames` yields."""
        return {1: ("gray", "gray16le"), 3: ("rgb24", "rgb48le")}[self.channels][self.bits // 16]

    def error(self, reason: str | None) -> DataError:
        """The error of this file for a reason."""
        return DataError(f"cannot read video {self._name}: {reason}")

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The file as a container of PyAV."""
        with self.decoding():
            container = av.open(f"file:{self.path}", options={"format_whitelist": _CONTAINERS})
        with container:
            yield container

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Turns FFmpeg's errors into one line, and keeps FFmpeg from printing."""
        av.logging.set_level(None)
        logging.getLogger("libav").setLevel(logging.CRITICAL)
        try:
            yield
        except UserError:
            raise
        except av.error.InvalidDataError as error:
            raise self.error(f"it is damaged or no video ({reason_of(error)}); {_REPAIR}") from error
        except av.error.ArgumentError as error:
            raise self.error(f"it is no video, whatever its name ({reason_of(error)})") from error
        except EOFError as error:
            raise self.error(f"it ends before its first frame; {_REPAIR}") from error
        except (FFmpegError, OSError) as error:
            raise self.error(reason_of(error)) from error

    def frames(self, skip: int = 0) -> Iterator[Frame]:
        """All frames but the first `skip`, in the order shown; afterwards `notes` tell of damage and of other sizes."""
        convert = _Conversion(self)
        damaged, resized, fields = 0, 0, 0
        last: int | None = None
        with self.open() as container, self.decoding():
            for number, frame in enumerate(container.decode(self._stream_of(container))):
                step = frame.duration or self._step
                pts = frame.pts if frame.pts is not None else (0 if last is None else last + step)
                if last is not None and pts <= last:  # times of damaged files may stand still or run back
                    pts = last + 1
                last = pts
                damaged += frame.is_corrupt
                fields += frame.interlaced_frame
                resized += (frame.width, frame.height) != self._coded
                if number >= skip:
                    yield Frame(convert(frame), pts, step)
        if damaged:
            self.notes.append(f"{damaged} frames are damaged in the file")
        if fields:
            self.notes.append(f"{fields} frames are interlaced and were taken as they are")
        if resized:
            self.notes.append(f"{resized} frames of another size were brought to that of the first")

    def _stream_of(self, container: Any) -> Any:
        stream = container.streams[self._index]
        stream.thread_type = "AUTO"
        return stream

    def _look_through(self, container: Any) -> None:
        """Finds the stream, counts its packets, and refuses what is cut short, encrypted or holds no video."""
        streams = [stream for stream in container.streams.video if not is_cover(stream)]
        if not streams:
            what = "only sound" if container.streams.audio else "neither pictures nor sound"
            raise self.error(f"it holds no video, {what}")
        stream = streams[0]
        if stream.codec_context is None:
            raise self.error("FFmpeg knows no decoder for it; convert it")
        if len(streams) > 1:
            self.notes.append(f"only the first of its {len(streams)} video streams")
        self._index = stream.index
        self.time_base: Fraction = stream.time_base
        codec = stream.codec_context
        if getattr(codec, "field_order", 0) not in _PROGRESSIVE:  # PyAV 17, for Python 3.10, asks the frames only
            raise self._interlaced()
        self.total, end = 0, 0.0
        times: list[int] = []
        with self.decoding():
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                if packet.has_sidedata("encryption_info"):
                    raise self.error("it is encrypted; give a copy without")
                self.total += 1
                if packet.pts is not None:
                    times.append(packet.pts)
                    end = max(end, float((packet.pts + (packet.duration or 0)) * self.time_base))
        if self.total == 0:
            raise self.error("it holds a video stream without frames")
        self.rate = self._rate_of(stream, times)
        self._step = max(1, round(1 / (self.rate * self.time_base)))
        steps = np.diff(np.sort(np.array(times, np.int64)))
        self.is_variable = bool(len(steps)) and int(steps.max() - steps.min()) > max(2, steps.max() // 50)
        self._refuse_if_cut(container, stream, end)

    def _rate_of(self, stream: Any, times: list[int]) -> Fraction:
        """Frames a second as the file says, unless its times differ, as where AVI counts frames that it dropped."""
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        if len(times) > 1 and max(times) > min(times):
            measured = (len(times) - 1) / ((max(times) - min(times)) * self.time_base)
            if abs(measured / rate - 1) > _RATE_TOLERANCE:
                return measured.limit_denominator(1001)
        return rate

    def _refuse_if_cut(self, container: Any, stream: Any, end: float) -> None:
        if container.format.name.startswith("mov") and self.total < stream.frames:  # others count what they dropped
            raise self.error(f"it is cut short: {self.total:,d} of {stream.frames:,d} frames are there; {_REPAIR}")
        named = stream.duration and float((stream.duration + (stream.start_time or 0)) * stream.time_base)
        if not named and container.duration and not container.streams.audio:
            named = (container.duration + (container.start_time or 0)) / av.time_base
        if named and end and named - end > max(_SHORTER_BY, 2 * float(1 / self.rate)):
            raise self.error(f"it is cut short: {end:.1f} of {named:.1f} seconds are there; {_REPAIR}")

    def _interlaced(self) -> DataError:
        return self.error(
            "it is interlaced; deinterlace it first, by `ffmpeg -i IN -vf bwdif -crf 12 -c:a copy OUT`, or, if only"
            " marked so, by `-vf setfield=prog`"
        )

    def _describe(self, frame: Any, stream: Any) -> None:
        """What the first frame tells."""
        if frame.interlaced_frame:
            raise self._interlaced()
        layout, codec = frame.format, stream.codec_context
        colour = [part for part in layout.components if not part.is_alpha]
        self.depth = max(part.bits for part in colour)
        if self.depth > _DEEPEST or layout.name.startswith(("bayer", "xyz")):
            raise self.error(f"its pixels are of the kind {layout.name}; convert it")
        if len(colour) < len(layout.components) or stream.metadata.get("alpha_mode") == "1":  # which WebM keeps apart
            self.notes.append("transparency left out")
        if _HDR & {entry.type.name for entry in frame.side_data}:
            self.notes.append("HDR metadata left out")
        self.bits = 8 if self.depth <= 8 else 16
        self.is_rgb = layout.is_rgb or layout.has_palette
        self.channels = 1 if len(colour) == 1 and not self.is_rgb else 3
        self.subsampling = "420"
        if self.channels == 3:
            across, down = layout.chroma_width(16), layout.chroma_height(16)
            self.subsampling = {(16, 16): "444", (8, 16): "422"}.get((across, down), "420")
        self._coded = frame.width, frame.height
        self.colours = self._colours(frame)
        self._turn = _turn_of(frame)
        self.height, self.width = self._turn((frame.height, frame.width))
        self.pixel_aspect = stream.sample_aspect_ratio or codec.sample_aspect_ratio or Fraction(1)
        if self._turn.swaps and self.pixel_aspect:
            self.pixel_aspect = 1 / self.pixel_aspect

    def _colours(self, frame: Any) -> Colours:
        matrix, levels = int(frame.colorspace), int(frame.color_range)
        is_yuv = self.channels == 3 and not self.is_rgb
        if is_yuv and matrix not in (*_MATRICES, _UNSPECIFIED):
            raise self.error(f"its colour matrix (FFmpeg's number {matrix}) is none of {', '.join(_MATRICES.values())}")
        if not is_yuv or matrix == _UNSPECIFIED:
            is_hd = frame.height >= _HD_HEIGHT or frame.width >= _HD_WIDTH
            matrix = 1 if is_hd or self.is_rgb else _BT601
            if is_yuv:
                self.notes.append(f"no colour matrix in the file: {'BT.709' if is_hd else 'BT.601'} by its size")
        if frame.format.name.startswith("yuvj"):
            levels = _FULL
        if not is_yuv or levels not in (_LIMITED, _FULL):
            levels = _LIMITED
        return Colours(matrix, levels, int(frame.color_primaries), int(frame.color_trc))


class _Conversion:
    """Frames of PyAV to arrays of the file's first frame's size."""

    def __init__(self, video: VideoFile) -> None:
        self._video = video
        self._is_yuv = video.channels == 3 and not video.is_rgb
        self._target = "yuv444p16le" if self._is_yuv and video.bits == 16 else video.layout
        self._graph: Graph | None = None
        self._key: tuple[Any, ...] = ()

    def __call__(self, frame: Any) -> np.ndarray:
        key = frame.width, frame.height, frame.format.name
        if self._graph is None or key != self._key:
            self._key = key
            width, height = self._video._coded
            matrix = ""
            if self._is_yuv:
                colours = self._video.colours
                matrix = f":in_color_matrix={colours.matrix_name}:in_range={colours.range_name}"
                matrix += ":out_range=pc" if self._video.bits == 8 else colours.unchanged
            self._graph = scaling(
                frame.width, frame.height, frame.format.name, f"w={width}:h={height}:{EXACT}{matrix}", self._target
            )
        frame.pts, frame.time_base = 0, ANY_UNIT
        self._graph.vpush(frame)
        pixels = self._graph.vpull().to_ndarray()
        if self._target == "yuv444p16le":
            pixels = self._video.colours.to_rgb(pixels, self._video.depth)
        return np.ascontiguousarray(self._video._turn.of(pixels.reshape(*pixels.shape[:2], -1)))


def scaling(width: int, height: int, layout: str, scale: str, target: str, aspect: Fraction = Fraction(1)) -> Graph:
    """FFmpeg's scaler for frames of a size and layout, by options `scale`, to the layout `target`.

    Its frames are marked with the pixels' `aspect`.
    """
    graph = Graph()
    source = graph.add_buffer(
        format=av.VideoFormat(layout, width, height), width=width, height=height, time_base=ANY_UNIT
    )
    graph.link_nodes(
        source,
        graph.add("scale", scale),
        graph.add("format", target),
        graph.add("setsar", f"sar={aspect.numerator}/{aspect.denominator}:max={_LARGEST_ASPECT}"),
        graph.add("buffersink"),
    ).configure()
    return graph


@dataclass(frozen=True)
class _Turn:
    """A turn by quarters, perhaps mirrored: axes swapped first, then flipped."""

    swaps: bool = False
    flips_rows: bool = False
    flips_columns: bool = False

    def __call__(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[::-1] if self.swaps else size

    def of(self, pixels: np.ndarray) -> np.ndarray:
        if self.swaps:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.flips_rows else 1, :: -1 if self.flips_columns else 1]


def _turn_of(frame: Any) -> _Turn:
    """How a frame is to be shown, by its display matrix: x' = a x + c y, y' = b x + d y; other angles are left."""
    for entry in frame.side_data:
        if entry.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(entry), "<i4")[:5].tolist()
            if a == d == 0 and b and c:
                return _Turn(True, flips_rows=b < 0, flips_columns=c < 0)
            if b == c == 0 and a and d:
                return _Turn(False, flips_rows=d < 0, flips_columns=a < 0)
    return _Turn()


def is_cover(stream: Any) -> bool:
    """Whether a stream of pictures is a still beside the video."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def announced_size(file: BinaryIO) -> int | None:
    """The bytes that a Matroska, AVI or MP4 file has by what it says itself; None of others, and where it does not."""
    head = file.read(_LONGEST_HEADER)
    if head[4:8] == b"ftyp":
        return _end_of_boxes(file)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        size = int.from_bytes(head[4:8], "little")
        return size + 8 if 0 < size < _NO_RIFF_SIZE else None
    if head[:4] != _EBML:
        return None
    start = 4
    for name in (_EBML, _SEGMENT):
        width = 9 - (head[start : start + 1] or b"\0")[0].bit_length()  # zeros before the first one tell the length
        number, start = int.from_bytes(head[start : start + width], "big") & (1 << 7 * width) - 1, start + width
        if name == _SEGMENT:
            return start + number if number != (1 << 7 * width) - 1 else None
        start += number + len(_SEGMENT)
        if head[start - len(_SEGMENT) : start] != _SEGMENT:
            break
    return None


def _end_of_boxes(file: BinaryIO) -> int | None:
    """Where the last box of an MP4 file ends, or would; None where it says so itself, or something else follows."""
    end, size = 0, os.fstat(file.fileno()).st_size
    while end < size:
        file.seek(end)
        head = file.read(16)
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < len(head[:8]) or not (name.isascii() and name.isalnum()):
            return None
        end += length
    return end


def reason_of(error: Exception) -> str:
    """FFmpeg's words without the name of the file and the number."""
    return printable(getattr(error, "strerror", None) or first_line(error))
