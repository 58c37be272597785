"""scripts/export.py as a user runs it."""

from __future__ import annotations

import importlib
import resource
import subprocess
import sys
from pathlib import Path

import torch
from support.students import save_student, student

from basicsr.engine.process.command import run_command
from basicsr.export.base import export_formats, names_of
from basicsr.utils.torchvision_import import import_torchvision

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "export.py"


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run(SCRIPT, *arguments)


def run(*arguments: object, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    words = [sys.executable, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, preexec_fn=limit)


def test_the_command_says_what_it_took_checked_and_wrote(tmp_path):
    network, block = student("EDSR", 4)
    source = save_student(tmp_path / "net.pth", network, block, params_ema=network.state_dict())
    done = command("--model", source, "--output", tmp_path / "out", "--layout", "spandrel")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{source}: EDSR x4, 0.01 M parameters, weights: params_ema"
    assert lines[1].split() == ["checked", "against", "PyTorch", "input", "max.", "difference", "allowed"]
    assert sum("onnx (onnxruntime)" in line and "1.0e-04" in line for line in lines) == 6
    assert [line.split()[1] for line in lines if line.startswith("wrote")] == [
        str(tmp_path / "out" / f"distilled_x4{export_formats()[name].ending}") for name in names_of(targets=False)
    ]
    assert lines[-1].startswith("note: spandrel 0.4.2 has no EDSR")
    assert done.stderr.splitlines() == [f"{name}: writing and checking" for name in names_of(targets=False)]
    assert names_of(targets=False)[:3] == ["safetensors", "onnx", "torch-export"]


def test_a_file_that_is_no_network_ends_with_one_line(tmp_path, monkeypatch, capsys):
    main = importlib.import_module("export").main
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.ones(3)}, path)
    assert run_command(lambda: main(["--model", str(path), "--output", str(tmp_path / "out")])) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no network that is recognised" in line
    assert not (tmp_path / "out").exists()


def test_a_file_that_does_not_fit_on_the_disk_ends_with_one_line(tmp_path):
    """For each format, in one process: the limit stands for the disk."""
    network, block = student("EDSR", 2)
    source = save_student(tmp_path / "net.pth", network, block)
    arguments = ["--model", str(source), "--output", str(tmp_path / "out"), "--formats"]
    program = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\nimport export\n"
        f"for kind in {names_of(targets=False)!r}:\n"
        f"    print(export.run_command(lambda: export.main([*{arguments!r}, kind])))"
    )
    done = run("-c", program, largest_file=16384)
    expected = []
    for kind in names_of(targets=False):
        target = tmp_path / "out" / f"distilled_x2{export_formats()[kind].ending}"
        expected += [f"{kind}: writing and checking", f"error: cannot save {target}: File too large"]
    assert done.stderr.splitlines() == expected
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["4"] * len(names_of(targets=False))
    assert not (tmp_path / "out").exists()


def test_no_warnings_of_spandrels_code_are_shown(tmp_path):
    import_torchvision()
    from spandrel.architectures.OmniSR.__arch.OmniSR import OmniSR

    path = tmp_path / "omni.pth"
    options = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "res_num": 1, "up_scale": 2, "window_size": 8}
    torch.save(OmniSR(**options).state_dict(), path)
    done = command("--model", path, "--output", tmp_path / "out", "--formats", "safetensors")
    assert done.returncode == 0 and done.stdout.startswith(f"{path}: OmniSR x2")
    recognised, progress = done.stderr.splitlines()
    assert "by spandrel" in recognised and progress == "safetensors: writing and checking"
