from __future__ import annotations

import logging
import uuid

import pytest

from basicsr.utils import get_root_logger
from basicsr.utils import logger as logger_module
from basicsr.utils.logger import WarningRemark, log_remark


@pytest.fixture
def name():
    name = f"test_{uuid.uuid4().hex}"
    yield name
    for handler in list(logging.getLogger(name).handlers):
        handler.close()
        logging.getLogger(name).removeHandler(handler)


def test_lines_are_written_once_however_often_the_logger_is_asked_for(name, tmp_path, capsys):
    for _ in range(3):
        logger = get_root_logger(name, log_file=tmp_path / "a.log")
    get_root_logger(name).info("hello")
    assert len(logger.handlers) == 2
    assert (tmp_path / "a.log").read_text().count("INFO: hello\n") == 1
    assert capsys.readouterr().err.count("hello") == 1


def test_a_file_may_come_later_and_is_appended_to(name, tmp_path):
    (tmp_path / "a.log").write_text("before\n")
    get_root_logger(name).info("unseen")
    get_root_logger(name, log_file=tmp_path / "a.log").warning("seen")
    lines = (tmp_path / "a.log").read_text().splitlines()
    assert lines[0] == "before"
    assert lines[1].endswith("WARNING: seen")
    assert len(lines) == 2


def test_ranks_other_than_0_log_errors_only_and_to_no_file(name, tmp_path, monkeypatch):
    monkeypatch.setattr(logger_module, "get_dist_info", lambda: (1, 2))
    logger = get_root_logger(name, log_file=tmp_path / "a.log")
    assert logger.level == logging.ERROR
    assert not (tmp_path / "a.log").exists()


def test_doubts_among_remarks_are_warnings(name, tmp_path):
    logger = get_root_logger(name, log_file=tmp_path / "a.log")
    for remark in ("loaded", WarningRemark("a part was left out")):
        log_remark(logger, remark)
    first, second = (tmp_path / "a.log").read_text().splitlines()
    assert first.endswith("INFO: loaded") and second.endswith("WARNING: a part was left out")
