"""Bytes of images by name, from a folder or from an LMDB database; BasicSR's interface."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from basicsr.files.lmdb_databases import stored_value
from basicsr.files.regular_files import read_regular
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.text import printable


class FileClient:
    """Reads from one kind of storage; raises OptionsError for an unknown backend or option.

    Args:
        backend: 'disk' or 'lmdb'.
        **options: for 'lmdb', `db_paths` (a path or a list), `client_keys` (a name for each) and `readahead`.
    """

    def __init__(self, backend: str = "disk", **options: Any) -> None:
        if backend not in BACKENDS:
            raise OptionsError(f"io_backend type must be one of {', '.join(BACKENDS)}, got '{backend}'")
        allowed = BACKENDS[backend].options
        if unknown := sorted(set(options) - set(allowed)):
            raise OptionsError(
                f"io_backend of type {backend} has no option {', '.join(unknown)}; "
                f"allowed: {', '.join(allowed) or 'none'}"
            )
        self.backend = backend
        self.client: _Disk | _Lmdb = BACKENDS[backend](**options)

    def get(self, filepath: str | os.PathLike[str], client_key: str = "default") -> bytes:
        """The content of a file, or the value of the key `filepath` in the database `client_key`; raises DataError."""
        with self.view(filepath, client_key) as value:
            return bytes(value)

    def view(
        self, filepath: str | os.PathLike[str], client_key: str = "default"
    ) -> AbstractContextManager[bytes | memoryview]:
        """As `get`, without copying a database's memory: nothing that lies on it may be kept after the block."""
        return self.client.view(os.fspath(filepath), client_key)

    def get_text(self, filepath: str | os.PathLike[str], client_key: str = "default") -> str:
        """As `get`, decoded from UTF-8."""
        return self.get(filepath, client_key).decode("utf-8")


class _Disk:
    options: tuple[str, ...] = ()

    def view(self, name: str, client_key: str) -> AbstractContextManager[bytes]:
        try:
            return nullcontext(read_regular(name))
        except (OSError, ValueError) as error:  # ValueError: a name with a NUL byte
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise DataError(f"cannot read {printable(name)}: {reason}; check the path") from error


class _Lmdb:
    options = ("db_paths", "client_keys", "readahead")

    def __init__(
        self,
        db_paths: str | Sequence[str],
        client_keys: str | Sequence[str] = "default",
        readahead: bool = False,
    ) -> None:
        paths = [db_paths] if isinstance(db_paths, str) else list(db_paths)
        keys = [client_keys] if isinstance(client_keys, str) else list(client_keys)
        if len(paths) != len(keys):
            raise OptionsError(f"lmdb needs a client_key for each of db_paths, got {len(keys)} for {len(paths)}")
        self._paths = dict(zip(keys, map(str, paths), strict=True))
        self._readahead = readahead

    def view(self, name: str, client_key: str) -> AbstractContextManager[memoryview]:
        if client_key not in self._paths:
            raise OptionsError(f"no LMDB database is called '{client_key}'; there are: {', '.join(self._paths)}")
        return stored_value(self._paths[client_key], name, self._readahead)


BACKENDS: dict[str, Any] = {"disk": _Disk, "lmdb": _Lmdb}
