"""Tiny videos, made by the library that reads them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

UNIT = Fraction(1, 12800)


def make_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    pts: Sequence[int] | None = None,
    layout: str = "yuv420p",
    codec: str = "libx264",
    matrix: int = 5,
    levels: int = 1,
    aspect: Fraction = Fraction(1),
    sound: bool = False,
    subtitles: bool = False,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    raw: bool = False,
) -> Path:
    """Writes RGB frames (H, W, 3), 25 a second unless `pts` in units of 1/12800 s are given.

    `raw` frames are yuv444p planes (3, H, W); uint16 ones are codes of 10 bits, times 64, for a layout of 10 bits, of
    whose chroma the pixels that the layout has are taken.
    """
    import av

    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[1:] if raw else frames[0].shape[:2]
        stream.pix_fmt = layout
        stream.options = {"crf": "1", **(options or {})} if codec == "libx264" else (options or {})
        context = stream.codec_context
        context.time_base, context.sample_aspect_ratio = UNIT, aspect
        context.colorspace, context.color_range = matrix, levels
        heard = _add_sound(container) if sound else None
        read = container.add_mux_stream("mov_text") if subtitles else None
        for number, pixels in enumerate(frames):
            if raw:
                is_8bit = pixels.dtype == np.uint8
                frame = av.VideoFrame.from_ndarray(pixels, format="yuv444p") if is_8bit else _of_10_bits(pixels, layout)
            else:
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame = frame.reformat(format=layout, dst_colorspace=matrix, dst_color_range=levels)
            if frame.format.name != layout:
                frame = frame.reformat(format=layout)
            frame.colorspace, frame.color_range = matrix, levels
            frame.pts, frame.time_base = number * 512 if pts is None else pts[number], UNIT
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if heard is not None:
            _write_sound(container, heard, len(frames))
        if read is not None:
            packet = av.Packet(struct.pack(">H", 5) + b"Hello")
            packet.stream, packet.pts, packet.dts, packet.duration = read, 40, 40, 80
            packet.time_base = Fraction(1, 1000)
            container.mux(packet)
    return path


def _of_10_bits(pixels: np.ndarray, layout: str) -> Any:
    """A frame whose planes are filled one by one: swscale does not convert to 10 bits alike at every call."""
    import av

    frame = av.VideoFrame(pixels.shape[2], pixels.shape[1], layout)
    for plane, values in zip(frame.planes, pixels, strict=True):
        rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
        kept = values[:: len(values) // plane.height, :: values.shape[1] // plane.width]
        rows[:, : plane.width] = (kept.astype(np.uint32) + 32) >> 6
        plane.update(rows.tobytes())
    return frame


def _add_sound(container: Any) -> Any:
    stream = container.add_stream("aac", rate=16000)
    stream.layout = "mono"
    stream.metadata["language"] = "eng"
    return stream


def _write_sound(container: Any, stream: Any, frames: int) -> None:
    import av

    wave = np.sin(np.arange(frames * 640) / 7).astype(np.float32)
    for start in range(0, len(wave), 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def turn_by_metadata(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Writes a display matrix (a, b, c, d) into the first track of an mp4 file."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    a, b, c, d = (entry << 16 for entry in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def packets_of(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    """Times and bytes of the packets of the first stream of a kind."""
    import av

    with av.open(str(path)) as container:
        return [
            (packet.pts * packet.time_base, bytes(packet)) for packet in container.demux(**{kind: 0}) if packet.size
        ]
