"""The logger of a run."""

from __future__ import annotations

import logging
import os
import sys

from basicsr.utils.dist_util import get_dist_info

_FORMAT = "%(asctime)s %(levelname)s: %(message)s"


class WarningRemark(str):
    """A remark that `log_remark` logs as a warning."""

    __slots__ = ()


def log_remark(logger: logging.Logger, remark: str) -> None:
    """Logs a remark on what was built or loaded: a `WarningRemark` as a warning, others as information."""
    logger.log(logging.WARNING if isinstance(remark, WarningRemark) else logging.INFO, remark)


def get_root_logger(
    logger_name: str = "basicsr",
    log_level: int = logging.INFO,
    log_file: str | os.PathLike[str] | None = None,
) -> logging.Logger:
    """Returns the logger `logger_name`, set up on the first call; ranks other than 0 log errors only.

    Lines go to stderr, not to loggers above, and are appended to `log_file`; naming the same file again changes
    nothing. `log_level` is taken when the logger is set up or given a file.
    """
    logger = logging.getLogger(logger_name)
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        logger.propagate = False
        logger.setLevel(log_level)
        _add(logger, _Stderr())
    if get_dist_info()[0] != 0:
        logger.setLevel(logging.ERROR)
    elif log_file is not None:
        files = [handler.baseFilename for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
        if os.path.abspath(log_file) not in files:
            logger.setLevel(log_level)
            _add(logger, _File(log_file, mode="a", encoding="utf-8", errors="backslashreplace"))
    return logger


class _Stderr(logging.StreamHandler):
    """Told apart from handlers that a user of the package added; a closed terminal ends nothing."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _File(logging.FileHandler):
    """Warns once that it cannot write, and lets the program go on."""

    _warned = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._warned:
            self._warned = True
            print(f"warning: cannot write {self.baseFilename}: {error.strerror}", file=sys.stderr, flush=True)


def _add(logger: logging.Logger, handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(handler)
