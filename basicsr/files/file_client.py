"""Bytes of images by name, from a folder or from an LMDB database; BasicSR's interface."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from basicsr.files.lmdb_databases import stored_value
from basicsr.files.regular_files import read_regular
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.text import printable

_OPTIONS = {"disk": (), "lmdb": ("db_paths", "client_keys", "readahead")}


class FileClient:
    """Reads from one kind of storage; raises OptionsError for an unknown backend or option.

    Args:
        backend: 'disk' or 'lmdb'.
        **options: for 'lmdb', `db_paths` (a path or a list), `client_keys` (a name for each) and `readahead`.
    """

    def __init__(self, backend: str = "disk", **options: Any) -> None:
        if backend not in _OPTIONS:
            raise OptionsError(f"io_backend type must be one of {', '.join(_OPTIONS)}, got '{backend}'")
        allowed = _OPTIONS[backend]
        if unknown := sorted(set(options) - set(allowed)):
            raise OptionsError(
                f"io_backend of type {backend} has no option {', '.join(unknown)}; "
                f"allowed: {', '.join(allowed) or 'none'}"
            )
        self.backend = backend
        self._databases: dict[str, str] = {}
        self._readahead = bool(options.get("readahead", False))
        if backend == "lmdb":
            paths, keys = _listed(options.get("db_paths", [])), _listed(options.get("client_keys", "default"))
            if not paths or len(paths) != len(keys):
                raise OptionsError(f"lmdb needs a client_key for each of db_paths, got {len(keys)} for {len(paths)}")
            self._databases = dict(zip(keys, map(str, paths), strict=True))

    @property
    def client(self) -> FileClient:
        """What reads for it, in BasicSR an object of its own."""
        return self

    def get(self, filepath: str | os.PathLike[str], client_key: str = "default") -> bytes:
        """The content of a file, or the value of the key `filepath` in the database `client_key`; raises DataError."""
        name = os.fspath(filepath)
        if self.backend == "lmdb":
            if client_key not in self._databases:
                raise OptionsError(
                    f"no LMDB database is called '{client_key}'; there are: {', '.join(self._databases)}"
                )
            with stored_value(self._databases[client_key], name, self._readahead) as value:
                return bytes(value)
        try:
            return read_regular(name)
        except (OSError, ValueError) as error:  # ValueError: a name with a NUL byte
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise DataError(f"cannot read {printable(name)}: {reason}; check the path") from error

    def get_text(self, filepath: str | os.PathLike[str], client_key: str = "default") -> str:
        """As `get`, decoded from UTF-8."""
        return self.get(filepath, client_key).decode("utf-8")


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
