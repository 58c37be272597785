"""The logger of a run."""

from __future__ import annotations

import logging
import os
import sys

from basicsr.utils.dist_util import get_dist_info

_FORMAT = "%(asctime)s %(levelname)s: %(message)s"


class Doubt(str):
    """A remark that is to be seen: `log_remark` makes a warning of it."""

    __slots__ = ()


def log_remark(logger: logging.Logger, remark: str) -> None:
    """Logs a remark of what was built and loaded: a `Doubt` as a warning, others for information."""
    logger.log(logging.WARNING if isinstance(remark, Doubt) else logging.INFO, remark)


def get_root_logger(
    logger_name: str = "basicsr",
    log_level: int = logging.INFO,
    log_file: str | os.PathLike[str] | None = None,
) -> logging.Logger:
    """Returns the logger `logger_name`; sets it up on the first call. Further calls never repeat a line.

    Ranks other than 0 log errors only, and to no file, whenever the process group came to be.

    Args:
        logger_name: its name; lines go to stderr and not to loggers above.
        log_level: level, taken when the logger is set up or given a file.
        log_file: file to append the lines to as well; naming the same file again changes nothing.
    """
    logger = logging.getLogger(logger_name)
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        logger.propagate = False
        logger.setLevel(log_level)
        _add(logger, _Stderr())
    if get_dist_info()[0] != 0:
        logger.setLevel(logging.ERROR)
    elif log_file is not None and os.path.abspath(log_file) not in _files_of(logger):
        logger.setLevel(log_level)
        _add(logger, _File(log_file, mode="a", encoding="utf-8", errors="backslashreplace"))
    return logger


class _Stderr(logging.StreamHandler):
    """Told apart from handlers that a user of the package may have added; a terminal that is gone ends nothing."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _File(logging.FileHandler):
    """Says once, in a line, that it cannot write, and does not keep the program from going on."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and not self._told:
            self._told = True
            print(f"warning: cannot write {self.baseFilename}: {error.strerror}", file=sys.stderr, flush=True)
        elif not isinstance(error, OSError):
            super().handleError(record)


def _add(logger: logging.Logger, handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(handler)


def _files_of(logger: logging.Logger) -> list[str]:
    return [handler.baseFilename for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
