"""Bytes of images by name, from a folder or from an LMDB database; BasicSR's interface.

LMDB environments are opened on first use, once per process and path: LMDB allows no second opening in a
process, and none may cross a fork. They are read-only and take no lock, so that any number of processes can
read at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from basicsr.files.lmdb_pages import find_short_file
from basicsr.files.regular_files import read_regular
from basicsr.utils.errors import DataError, MachineError, OptionsError
from basicsr.utils.text import printable

_environments: dict[str, Any] = {}  # by real path
_known: dict[str, Any] = {}  # the same by absolute paths as they are given: resolving links takes longer than reading
_opening = threading.Lock()


class FileClient:
    """Reads from one kind of storage.

    Args:
        backend: 'disk' or 'lmdb'.
        **options: for 'lmdb', `db_paths` (a path or a list), `client_keys` (a name for each, 'default' if
            there is one) and `readahead` (False: better for databases larger than the memory).

    Raises:
        OptionsError: the backend or an option is unknown.
    """

    def __init__(self, backend: str = "disk", **options: Any) -> None:
        if backend not in _BACKENDS:
            raise OptionsError(f"io_backend type must be one of {', '.join(_BACKENDS)}, got '{backend}'")
        allowed = _BACKENDS[backend].options
        if unknown := sorted(set(options) - set(allowed)):
            raise OptionsError(
                f"io_backend of type {backend} has no option {', '.join(unknown)}; "
                f"allowed: {', '.join(allowed) or 'none'}"
            )
        self.backend = backend
        self.client: _Backend = _BACKENDS[backend](**options)

    def get(self, filepath: str | os.PathLike[str], client_key: str = "default") -> bytes:
        """The content of a file, or what the database named `client_key` holds under the key `filepath`.

        Raises:
            DataError: there is no such file, database or key, or it cannot be read.
        """
        return self.client.get(os.fspath(filepath), client_key)

    def view(
        self, filepath: str | os.PathLike[str], client_key: str = "default"
    ) -> AbstractContextManager[bytes | memoryview]:
        """As `get`, for the length of a block: of a database the stored bytes themselves, of which nothing is copied.

        No part of them, and no array that lies on them, may be kept after the block.
        """
        return self.client.view(os.fspath(filepath), client_key)

    def get_text(self, filepath: str | os.PathLike[str], client_key: str = "default") -> str:
        """As `get`, decoded from UTF-8."""
        return self.get(filepath, client_key).decode("utf-8")


class _Backend(Protocol):
    def get(self, name: str, client_key: str) -> bytes: ...

    def view(self, name: str, client_key: str) -> AbstractContextManager[bytes | memoryview]: ...


class _Disk:
    options: tuple[str, ...] = ()

    def get(self, name: str, client_key: str) -> bytes:
        try:
            return read_regular(name)
        except (OSError, ValueError) as error:  # ValueError: a name with a NUL byte
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise DataError(f"cannot read {printable(name)}: {reason}; check the path") from error

    def view(self, name: str, client_key: str) -> AbstractContextManager[bytes]:
        return nullcontext(self.get(name, client_key))


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

    def get(self, name: str, client_key: str) -> bytes:
        with self.view(name, client_key) as value:
            return bytes(value)

    def view(self, name: str, client_key: str) -> AbstractContextManager[memoryview]:
        if client_key not in self._paths:
            raise OptionsError(f"no LMDB database is called '{client_key}'; there are: {', '.join(self._paths)}")
        return stored_value(self._paths[client_key], name, self._readahead)


_BACKENDS: dict[str, Any] = {"disk": _Disk, "lmdb": _Lmdb}


@contextmanager
def stored_value(path: str, key: str, readahead: bool = False) -> Iterator[memoryview]:
    """What an LMDB database holds under a key, in the database's own memory: not copied, and gone after the block.

    Raises:
        DataError: there is no such database or key, or it is damaged.
    """
    environment = _environment(path, readahead)
    import lmdb

    try:
        with environment.begin(write=False, buffers=True) as transaction:
            value = transaction.get(key.encode("utf-8", "surrogateescape"))
            if value is None:
                raise DataError(f"LMDB database {path} has no key '{printable(key)}'; create it again from all images")
            yield value
    except lmdb.Error as error:
        raise DataError(
            f"cannot read key '{printable(key)}' of LMDB database {path}: {error}; create it again"
        ) from error


def count_values(path: str) -> int:
    """How many images an LMDB database holds; raises DataError where it cannot be opened."""
    return int(_environment(path, readahead=False).stat()["entries"])


def _environment(path: str, readahead: bool) -> Any:
    absolute = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
    if environment := _known.get(absolute):
        return environment
    real_path = os.path.realpath(path)
    with _opening:  # two threads must not open one database
        _known[absolute] = _environments.get(real_path) or _opened(path, real_path, readahead)
    return _known[absolute]


def _opened(path: str, real_path: str, readahead: bool) -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise MachineError("reading an LMDB database needs the package lmdb; install it with pip") from error
    if not os.path.isfile(os.path.join(real_path, "data.mdb")):
        raise DataError(f"{path} is no LMDB database: it has no data.mdb; check the path, or run create_lmdb.py")
    if short := find_short_file(os.path.join(real_path, "data.mdb")):
        raise DataError(f"cannot open LMDB database {path}: {short}; copy it again, or create it again")
    try:
        _environments[real_path] = lmdb.open(real_path, readonly=True, lock=False, readahead=readahead)
    except lmdb.Error as error:
        raise DataError(f"cannot open LMDB database {path}: {error}; create it again") from error
    return _environments[real_path]


def _close_inherited() -> None:
    """In a new process: lets go of the parent's environments, so that they are opened again when needed."""
    global _opening
    _opening = threading.Lock()  # a thread that does not exist here may hold the parent's
    for environment in _environments.values():
        environment.close()
    _environments.clear()
    _known.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
