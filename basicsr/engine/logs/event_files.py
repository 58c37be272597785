"""TensorBoard's files of a run that is resumed: without what it will log again."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from basicsr.files.atomic_files import write_atomically
from basicsr.files.regular_files import read_regular
from basicsr.utils.logger import get_root_logger

_LENGTH = struct.Struct("<Q")
_CHECKSUM = 4


def forget(folder: Path, is_void: Callable[[str, int], bool]) -> None:
    """Takes figures out of the event files of a folder, and half of a last one that a killed process left.

    TensorBoard itself would hide them; other readers of the files would find steps twice. What is no file, or cannot be
    read, is left alone, with a warning.

    Args:
        folder: tb_logger/NAME; need not be there.
        is_void: whether a figure is to go, by its name and step.

    Raises:
        CheckpointError: a file cannot be written.
    """
    for path in sorted(folder.glob("events.out.tfevents.*")):
        try:
            content = read_regular(path)
        except OSError as error:
            get_root_logger().warning(f"cannot read {path}: {error.strerror}; steps in it may be logged twice")
            continue
        kept = b"".join(_kept(content, is_void))
        if len(kept) != len(content):
            _replace(path, kept)


def _replace(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def _kept(content: bytes, is_void: Callable[[str, int], bool]) -> Iterator[bytes]:
    """The records that stay; a record is a length, its checksum, an event, and its checksum."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    start = 0
    while start + _LENGTH.size <= len(content):
        body = start + _LENGTH.size + _CHECKSUM
        end = body + _LENGTH.unpack_from(content, start)[0] + _CHECKSUM
        if end > len(content):
            return
        try:
            event: Any = Event.FromString(content[body : end - _CHECKSUM])
        except DecodeError:
            return
        if not event.HasField("summary") or not any(is_void(value.tag, event.step) for value in event.summary.value):
            yield content[start:end]
        start = end
