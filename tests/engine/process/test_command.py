"""How commands end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from basicsr.engine.process import command
from basicsr.engine.process.command import run_command
from basicsr.utils.errors import CheckpointError, DataError, MachineError, NonFiniteError, OptionsError, Preempted

ROOT = Path(__file__).parents[3]


def raising(error: BaseException):
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OptionsError("bad"), 2, "error: bad"),
        (DataError("bad"), 3, "error: bad"),
        (CheckpointError("bad"), 4, "error: bad"),
        (NonFiniteError("bad"), 5, "error: bad"),
        (MachineError("bad"), 6, "error: bad"),
        (Preempted("preempted: saved 3.state"), 75, "preempted: saved 3.state"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_each_kind_of_failure_has_a_line_and_a_code_of_its_own(capsys, monkeypatch, error, code, line):
    monkeypatch.delenv("RANK", raising=False)
    assert run_command(raising(error)) == code
    assert capsys.readouterr().err == line + "\n"


def test_a_reader_that_has_gone_ends_the_command_quietly():
    code = """
import sys
from basicsr.engine.process.command import run_command
def main():
    for number in range(100_000):
        print(number)
    return 0
sys.exit(run_command(main))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 141


PRINTS = """
import os, sys
from basicsr.engine.process.command import run_command
def main():
    for number in range(3000):
        print(number)
    print("said", file=sys.stderr)
    with open("kept", "w") as file:
        assert file.fileno() > 2
        os.write(2, b"from below\\n")
    return 0
sys.exit(run_command(main))
"""


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        (">&-", 4, "said\nfrom below\nerror: cannot write standard output: it is closed\n"),
        (">/dev/full", 4, "said\nfrom below\nerror: cannot write standard output: No space left on device\n"),
        (">/dev/null 2>&-", 0, ""),
        ("0>&- >&- 2>&-", 4, ""),
    ],
)
def test_streams_that_are_closed_or_full_cost_the_report_and_nothing_else(tmp_path, streams, code, said):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-c", f'"$0" -c "$1" {streams}', sys.executable, PRINTS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)
    assert (tmp_path / "kept").read_text() == "", "no file has a standard stream's number"


def test_every_script_is_quiet_before_it_imports_what_takes_time():
    scripts = [file for folder in ("scripts", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    commands = [text for file in scripts if re.search(r"exit\(.*run(_command)?\(main\)\)", text := file.read_text())]
    assert len(commands) > 20
    for text in commands:
        before, _, after = text.partition("    quiet_start()")
        assert after, text
        for heavy in ("torch", "numpy", "cv2", "basicsr.data", "basicsr.config.load", "dataset_tools"):
            assert f"\nimport {heavy}" not in before and f"\nfrom {heavy}" not in before, text


def test_another_broken_pipe_is_a_bug_and_keeps_its_traceback():
    with pytest.raises(BrokenPipeError):
        run_command(raising(BrokenPipeError()))


def test_letters_that_the_terminal_has_not_are_escaped():
    code = (
        "from basicsr.engine.process.command import run_command as run; run(lambda: print('\u00e9t\u00e9 \u6570') or 0)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"\xe9t\xe9 \\u6570\n", b"")


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()))


def test_mistakes_in_options_are_told_by_one_rank_and_others_by_each(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(command, "_GRACE_SECONDS", 0.0)
    known = OptionsError("bad")
    known.known_to_all = True
    assert run_command(raising(known)) == 2
    assert capsys.readouterr().err == ""
    assert run_command(raising(DataError("bad"))) == 3
    assert capsys.readouterr().err == "[rank 1] error: bad\n"


def test_the_published_package_beside_ours_is_told(capsys, monkeypatch, tmp_path):
    metadata = tmp_path / "basicsr-1.4.2.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: basicsr\nVersion: 1.4.2\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert run_command(lambda: 0) == 0
    assert "published basicsr 1.4.2" in capsys.readouterr().err
