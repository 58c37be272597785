"""The script that prints options prints what a run will see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from basicsr.config.load import load_options

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "print_options.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_is_printed_loads_to_the_same_options(tmp_path):
    file = ROOT / "options/train/mcadkd_rcan_x3.yml"
    done = run(str(file), "--force_yml", "train:total_iter=7")
    assert done.returncode == 0, done.stderr
    (tmp_path / "printed.yml").write_text(done.stdout)
    printed = load_options(tmp_path / "printed.yml", training=True, paths=False)
    assert printed == load_options(file, overrides=["train:total_iter=7"], training=True, paths=False)


def test_positions_name_the_file_that_a_key_comes_from():
    done = run(str(ROOT / "options/test/edsr_x2.yml"), "--positions", "--force_yml", "val:pbar=true")
    lines = done.stdout.splitlines()
    assert f"{ROOT / 'options/networks/edsr_student.yml'}:5: networks.mcadkd.network.num_feat" in lines
    assert f"{ROOT / 'options/test/edsr_x2.yml'}:4: name" in lines
    assert "--force_yml: val.pbar" in lines


def test_mistakes_end_with_exit_code_2_and_without_a_traceback(tmp_path):
    (tmp_path / "a.yml").write_text("nmae: x\n")
    done = run(str(tmp_path / "a.yml"))
    assert done.returncode == 2
    assert "a.yml:1: nmae: unknown key (did you mean 'name'?)" in done.stderr
    assert "Traceback" not in done.stderr
