"""Training, testing, upscaling and export where nothing that only POSIX systems have can be imported or called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.tiny_run import tiny_mcadkd

ROOT = Path(__file__).resolve().parents[1]

# What Windows' Python does not have. Python's own modules are imported before, as they have other ways on Windows.
WITHOUT_POSIX = """
import os, select, selectors, shutil, signal, socketserver, subprocess, sys, tempfile, multiprocessing.synchronize
for module in ("fcntl", "grp", "nis", "posix_ipc", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[module] = None  # an import of it raises ImportError
for name in ("fork", "forkpty", "getloadavg", "getuid", "geteuid", "getgid", "killpg", "mkfifo", "nice", "setsid",
             "sched_getaffinity", "sched_setaffinity", "posix_fadvise", "sync"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("poll", "epoll"):
    if hasattr(select, name):
        delattr(select, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGXCPU", "SIGALRM", "SIGKILL", "SIGSTOP", "SIGCONT", "SIGPIPE",
             "SIGQUIT", "pthread_sigmask", "sigwait", "setitimer", "alarm"):
    if hasattr(signal, name):
        delattr(signal, name)
"""


COMMANDS = """
import basicsr.train, basicsr.test, cache_teacher, compare_methods, export, subprocesses, upscale
with basicsr.train.StopRequest() as stop:
    signal.raise_signal(signal.SIGTERM)
    assert stop
student, picture = sys.argv[1:]
for main, line in (
    (basicsr.train.main, "-opt train.yml"),
    (basicsr.train.main, "-opt train.yml --auto_resume --force_yml train:total_iter=3"),
    (basicsr.test.main, "-opt test.yml"),
    (upscale.main, f"--model {student} {picture} --output upscaled"),
    (export.main, f"--model {student} --output exported --formats safetensors"),
):
    assert main(line.split()) == 0, line
"""


def test_train_resume_test_upscale_and_export_need_nothing_that_only_posix_has(image_pairs, tmp_path):
    options = tiny_mcadkd(image_pairs)
    options["train"]["total_iter"] = 2
    (tmp_path / "train.yml").write_text(json.dumps(options))
    student = tmp_path / "experiments/tiny/models/net_g_latest.pth"
    test = {
        "name": "tested",
        "scale": 2,
        "num_gpu": 0,
        "datasets": {"val": options["datasets"]["val"]},
        "networks": {"student": {"network": options["network_g"], "path": str(student)}},
        "val": {"metrics": {"psnr": {"type": "calculate_psnr"}}},
        "report": {"speed": False},
    }
    (tmp_path / "test.yml").write_text(json.dumps(test))
    picture = next(Path(options["datasets"]["val"]["dataroot_lq"]).iterdir())
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX + COMMANDS, str(student), str(picture)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "scripts")))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Resumed 2.state at iteration 2" in done.stderr
    assert (tmp_path / "results/tested/summary.md").exists()
    assert list((tmp_path / "upscaled").iterdir())
    assert list((tmp_path / "exported").glob("*.safetensors"))
