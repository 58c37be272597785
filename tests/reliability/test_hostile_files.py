"""Files from strangers end in one line: nothing in them is run, imported or written, and no machine is exhausted.

Code in a file has a canary: the folder `canary` that it would make, or the module `canary_module` that it would import.
Limits are tried with files just beyond them, in a process of limited memory and time.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import hostile
from support.hostile import archive, call, legacy, name_of, numbers, safetensors, state, tensor, text
from support.networks import nearest_edsr, save_checkpoint

from basicsr import test as test_command
from basicsr import train as train_command
from basicsr.engine.checkpoint import CheckpointFolder
from basicsr.engine.process.command import run_command
from basicsr.files.torch_files import load_tensors
from basicsr.utils.errors import CheckpointError
from basicsr.weights.loading import read_weights

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}
MKDIR = call(name_of("os", "mkdir"), text("canary"))


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("canary",)


def code_files() -> dict[str, tuple[bytes, str]]:
    """Files that run code where a reader lets them, and what the refusal says."""
    objects = "Python objects other than tensors"
    return {
        "reduce in a ZIP": (archive(state(MKDIR)), objects),
        "reduce in an old file": (legacy(state(MKDIR)), objects),
        **{f"pickle of protocol {number}": (pickle.dumps(Evil(), number), objects) for number in range(6)},
        "an import and no more": (archive(state(name_of("canary_module", "x"))), objects),
        "an import by two texts": (archive(state(text("canary_module") + text("x") + b"\x93")), objects),
        "code before the number of an old file": (b"\x80\x02" + MKDIR + b"0N." + legacy(state())[:50], objects),
        "eval by Python 2's name": (
            archive(state(call(name_of("__builtin__", "eval"), text("__import__('os').mkdir('canary')")))),
            objects,
        ),
        "a tensor's hooks": (archive(state(weight=tensor(numbers(4), MKDIR))), objects),
        "an attribute of a tensor": (
            archive(state(name_of("torch", "Tensor") + b")R" + MKDIR + b"b")),
            "its pickle has",
        ),
    }


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with an importable module that must not be imported, and pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "canary_module.py").write_text("import os\nos.mkdir('canary')\nx = 1\n")
    yield tmp_path
    assert not (tmp_path / "canary").exists(), "the file's code ran"
    assert "canary_module" not in sys.modules


def commands(here: Path, image_pairs: Callable[..., tuple[Path, Path]]) -> dict[str, Callable[[Path], list[str]]]:
    """The command lines that read weights, by the program that takes them."""
    gt, lq = image_pairs(scale=2, count=2)
    pairs = {"type": "PairedImageDataset", "dataroot_gt": str(gt), "dataroot_lq": str(lq), "filename_tmpl": "{}x2"}

    def options(file: str, **content: Any) -> list[str]:
        (here / file).write_text(yaml.safe_dump({"name": "run", "scale": 2, "num_gpu": 0, **content}))
        return ["-opt", file]

    def testing(weights: Path) -> list[str]:
        datasets = {"test": {"name": "set", **pairs}}
        return options("test.yml", datasets=datasets, networks={"row": {"network": SMALL, "path": str(weights)}})

    def training(weights: Path) -> list[str]:
        datasets = {"train": {"name": "set", **pairs, "gt_size": 16, "batch_size_per_gpu": 1}}
        method = {"total_iter": 1, "resp_kd_opt": {"type": "L1Loss"}, "optim_g": {"type": "Adam", "lr": 1e-4}}
        path = {"pretrain_network_t": str(weights)}
        networks = {"network_g": SMALL, "network_t": SMALL}
        return options("train.yml", model_type="KDModel", datasets=datasets, train=method, path=path, **networks)

    return {
        "test": testing,
        "train": training,
        "export": lambda weights: ["--model", str(weights), "--output", "out"],
        "upscale": lambda weights: [str(lq), "--model", str(weights), "--output", "out", "--device", "cpu"],
    }


def run(program: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and the last line of errors of a public command; none of them may show a traceback."""
    if program in ("export", "upscale"):
        main = importlib.import_module(program).main
    else:
        main = {"test": test_command, "train": train_command}[program].main
    capsys.readouterr()
    code = run_command(lambda: main(arguments))
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return code, (errors.strip().splitlines() or [""])[-1]


@pytest.mark.parametrize("program", ["test", "train", "export", "upscale"])
def test_code_in_weights_is_refused_by_every_command_and_does_not_run(program, here, image_pairs, capsys):
    line_of = commands(here, image_pairs)[program]
    good = save_checkpoint(here / "good.pth", *nearest_edsr(2), 2)
    for name, (content, reason) in code_files().items():
        path = here / "evil.pth"
        path.write_bytes(content)
        code, line = run(program, line_of(path), capsys)
        assert code == CheckpointError.exit_code, (name, line)
        assert "evil.pth was not loaded: it" in line and reason in line, (name, line)
    assert not (here / "out").exists()
    if program == "export":  # and the same line does with a good file what it is for
        assert run(program, [*line_of(good), "--formats", "safetensors"], capsys)[0] == 0


def test_the_attacks_are_real(here):
    """Read by Python's own unpickler they make the folder."""
    shown = 0
    for name, (content, _) in code_files().items():
        if name.startswith(("pickle of protocol", "code before")):
            pickle.loads(content)
            os.rmdir("canary")
            shown += 1
    assert shown == 7


def test_what_else_runs_in_this_process_does_not_widen_what_files_may_name(here):
    path = here / "evil.pth"
    path.write_bytes(archive(state(MKDIR)))
    with torch.serialization.safe_globals([os.mkdir, (os.mkdir, "os.mkdir")]):
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        try:
            with pytest.raises(CheckpointError, match=r"other than tensors \('os\.mkdir'\)"):
                load_tensors(path)
        finally:
            del os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_programs_are_named(here, capsys):
    (here / "script.pt").write_bytes(hostile.torchscript(here))
    code, line = run("export", ["--model", "script.pt", "--output", "out"], capsys)
    assert code == CheckpointError.exit_code and "TorchScript program" in line
    with pytest.raises(CheckpointError, match="TorchScript program, which would have to be run"):
        read_weights(here / "script.pt")
    with pytest.raises(CheckpointError, match="TorchScript program, which would have to be run"):
        load_tensors(here / "script.pt")


# In the process of its own: what was read goes to standard output, line by line, so that the last one is known.
LIMITED = """
import os, resource, signal, sys
import torch
from basicsr.utils.errors import CheckpointError
from basicsr.weights.loading import read_weights

pages = int(open("/proc/self/statm").read().split()[0])
space = pages * os.sysconf("SC_PAGE_SIZE") + (700 << 20)
resource.setrlimit(resource.RLIMIT_AS, (space, space))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for path in sorted(os.listdir(".")):
    spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent) + 11, resource.RLIM_INFINITY))
    signal.alarm(300)
    print(path, end=": ", flush=True)
    try:
        print("loaded", read_weights(path).state["w"].shape, flush=True)
    except CheckpointError as error:
        print(repr(str(error)), flush=True)
"""


def limited(folder: Path, code: str = LIMITED) -> dict[str, str]:
    """What reading each file of a folder came to, in a process that may take 700 MB more and 10 s for each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"ended by {done.returncode} at {lines[-1:]}; {done.stderr[-2000:]}"
    return dict(line.split(": ", 1) for line in lines)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of a process as Linux has them")
def test_no_file_exhausts_memory_time_or_stack(tmp_path):
    attacks = hostile.beyond_limits()
    for name, content in attacks.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "good.pth").write_bytes(archive(state()))
    os.mkfifo(tmp_path / "pipe.pth")
    os.symlink("/dev/zero", tmp_path / "zero.pth")
    os.symlink("/dev/stdin", tmp_path / "stdin.pth")
    (tmp_path / "folder.pth").mkdir()
    found = limited(tmp_path)
    assert found.pop("good.pth") == "loaded torch.Size([4])"
    assert found.keys() == attacks.keys() | {"pipe.pth", "zero.pth", "stdin.pth", "folder.pth"}
    for name, line in found.items():
        assert line.startswith(("'checkpoint ", '"checkpoint ')) and len(line) < 500 and "\\n" not in line, (name, line)
    assert "is a device or a pipe; name a file" in found["pipe.pth"] and "a device" in found["zero.pth"]
    assert "is a folder; name the file" in found["folder.pth"]
    assert "is damaged (CRC-32 of 'archive/data/0' differs); fetch or copy it again" in found["flipped bit.pth"]
    assert "repeats its numbers" in found["stride 0.pth"]
    assert "nested deeper than 64" in found["deep tuples.pth"]


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of a process as Linux has them")
def test_no_file_here_harms_pytorch_either(tmp_path):
    """What is kept here is read or refused by others, too, within the same limits."""
    code = LIMITED.replace("read_weights(path).state", "torch.load(path, weights_only=True)['params']")
    assert code != LIMITED
    code = code.replace("except CheckpointError", "except Exception")
    files = {name: content for name, content in hostile.beyond_limits().items() if name.endswith(".pth")}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert limited(tmp_path, code).keys() == files.keys()


def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path):
    folder = CheckpointFolder(tmp_path / "run")
    folder.save(5, {"g": {"params": {"w": torch.ones(2)}}}, {"numbers": {}})
    (tmp_path / "secret").write_bytes(b"x")
    manifest = tmp_path / "run/training_states/5.json"
    content = json.loads(manifest.read_text())
    for name in (
        "../../secret",
        "models/../../secret",
        "/etc/passwd",
        "models/\0",
        "models/a\nb",
        "models/" + "a" * 9999,
    ):
        manifest.write_text(
            json.dumps({**content, "files": {**content["files"], name: {"sha256": "0" * 64, "bytes": 1}}})
        )
        with pytest.raises(CheckpointError) as caught:
            folder.load(tmp_path / "run/training_states/5.state")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 12_000
        assert (tmp_path / "secret").read_bytes() == b"x"
    for damaged in (
        "[" * 5000,
        '{"files": 1}',
        '{"files": {"a": null}}',
        "9" * 5000,
        '{"format": 1, "files": {}}',
        "",
    ):
        manifest.write_text(damaged)
        with pytest.raises(CheckpointError):
            folder.load(tmp_path / "run/training_states/5.state")


OPTIONS = """\
name: run
scale: 2
num_gpu: 0
networks: {bicubic: {type: bicubic}}
"""


def yaml_attacks() -> dict[str, str]:
    ten = ", ".join(["x"] * 10)
    aliases = f"a0: &a0 [{ten}]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 6))
    return {
        "apply": "x: !!python/object/apply:os.mkdir [canary]\n",
        "name": "x: !!python/name:canary_module.x ''\n",
        "module": "x: !!python/module:canary_module ''\n",
        "custom tag": "x: !custom {a: 1}\n",
        "many values": aliases,
        "deep flow": "x: " + "[" * 70 + "]" * 70 + "\n",
        "deep block": "x:\n" + "".join(" " * n + "- a:\n" for n in range(1, 70)),
        "passwd": "_base_: /etc/passwd\n",
        "zeros": "_base_: /dev/zero\n",
        "random": "_base_: /dev/urandom\n",
        "pipe": "_base_: pipe\n",
        "folder": "_base_: .\n",
        "nul": '_base_: "a\\0b"\n',
        "surrogate": '_base_: "\\ud800"\n',
        "itself": "_base_: evil.yml\n",
        "many times": "_base_: [" + ", ".join(["other.yml"] * 200) + "]\n",
        "long number": "x: " + "9" * 5000 + "\n",
    }


def test_options_run_nothing_and_end_in_lines(here, capsys):
    (here / "other.yml").write_text("a: {b: 1}\n" * 1)
    os.mkfifo(here / "pipe")
    for name, content in yaml_attacks().items():
        (here / "evil.yml").write_text(content + (OPTIONS if "_base_" not in content else ""), encoding="utf-8")
        code, line = run("test", ["-opt", "evil.yml"], capsys)
        assert code == 2 and len(line) < 1000, (name, code, line[:300])


@pytest.mark.parametrize(
    "override",
    [
        "name=!!python/object/apply:os.mkdir [canary]",
        "val:save_img=!!python/name:canary_module.x",
        "name=__import__('os').mkdir('canary')",
        "name=../../canary",
        "networks:row:network:type=os.mkdir",
        "networks:row:network:type=__import__",
        "x=" + "[" * 70,
        ":".join("a" * 2000) + "=1",
        "x=" + "9" * 5000,
        "_base_=/etc/passwd",
        "x=\0",
    ],
)
def test_values_of_the_command_line_are_data(override, here, capsys):
    (here / "evil.yml").write_text(OPTIONS)
    code, line = run("test", ["-opt", "evil.yml", "--force_yml", override], capsys)
    assert code == 2 and len(line) < 2000, (code, line[:300])
    assert sorted(os.listdir(here)) == ["canary_module.py", "evil.yml"]


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "a\0b", "a\nb", "..", ".", "a/../b", "x" * 5000, "~", "-rf", "\x1b[2J", "", " "]
)
def test_names_of_runs_are_names_of_folders(name, here, capsys):
    (here / "evil.yml").write_text(OPTIONS.replace("name: run", f"name: {json.dumps(name)}"))
    code, line = run("test", ["-opt", "evil.yml"], capsys)
    assert code == 2 and len(line) < 6000 and "\x1b" not in line, (code, line[:300])
    assert sorted(os.listdir(here)) == ["canary_module.py", "evil.yml"]


@pytest.mark.parametrize("kind", ["os.mkdir", "__import__", "canary_module.x", "../canary_module", "a\0b", "x" * 9999])
def test_types_are_names_in_registries(kind, here, capsys):
    row = json.dumps({"row": {"network": {"type": kind}, "path": "evil.yml"}})
    (here / "evil.yml").write_text(OPTIONS.replace("{bicubic: {type: bicubic}}", row))
    code, line = run("test", ["-opt", "evil.yml"], capsys)
    assert code == 2 and len(line) < 11_000, (code, line[:300])


def test_the_name_of_a_weight_cannot_write_to_the_terminal(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("archive/data.pkl", state().replace(text("w"), text("\x1b[2Jw\n")))
        file.writestr("archive/data/0", bytes(16))
    header = {"\x1b[2Jw": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    (tmp_path / "x.safetensors").write_bytes(safetensors(header, bytes(16)))
    for name in ("x.pth", "x.safetensors"):
        with pytest.raises(CheckpointError, match="is no name of a weight") as caught:
            read_weights(tmp_path / name)
        assert str(caught.value).isprintable()
