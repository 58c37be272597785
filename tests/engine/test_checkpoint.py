"""Checkpoints on real files: complete or not there, damage found, nothing executed."""

from __future__ import annotations

import functools
import json
import os
import pickle

import pytest
import torch

from basicsr.engine.checkpoint import CheckpointFolder
from basicsr.files.atomic_files import write_atomically
from basicsr.files.torch_files import load_tensors
from basicsr.utils.errors import CheckpointError


def save(folder: CheckpointFolder, iteration: int) -> None:
    networks = {"g": {"params": {"w": torch.arange(4.0) + iteration}}, "d": {"params": {"v": torch.ones(2)}}}
    folder.save(iteration, networks, {"terms": {}, "numbers": {"a": 1.5}})


def test_what_is_saved_comes_back(tmp_path):
    folder = CheckpointFolder(tmp_path)
    save(folder, 5)
    save(folder, 10)
    checkpoint, remarks = folder.latest()
    assert (checkpoint.iteration, checkpoint.path.name, remarks) == (10, "10.state", [])
    assert torch.equal(checkpoint.networks["g"]["params"]["w"], torch.arange(4.0) + 10)
    assert torch.equal(checkpoint.networks["d"]["params"]["v"], torch.ones(2))
    assert checkpoint.state["numbers"] == {"a": 1.5}
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("file", ["training_states/10.state", "models/net_g_10.pth", "models/net_d_10.pth"])
def test_one_flipped_bit_is_found_and_the_previous_checkpoint_is_used(tmp_path, file):
    folder = CheckpointFolder(tmp_path)
    save(folder, 5)
    save(folder, 10)
    content = bytearray((tmp_path / file).read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / file).write_bytes(content)
    checkpoint, remarks = folder.latest()
    assert checkpoint.iteration == 5
    assert len(remarks) == 1 and "is damaged (SHA-256" in remarks[0] and file.split("/")[1] in remarks[0]


def test_files_without_their_manifest_are_no_checkpoint(tmp_path):
    folder = CheckpointFolder(tmp_path)
    save(folder, 5)
    save(folder, 10)
    (tmp_path / "training_states/10.json").unlink()
    checkpoint, remarks = folder.latest()
    assert checkpoint.iteration == 5
    assert "not saved completely" in remarks[0]


def test_only_the_newest_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for iteration in (1, 2, 10, 9):
        save(folder, iteration)
    assert sorted(os.listdir(tmp_path / "training_states")) == ["10.json", "10.state", "9.json", "9.state"]
    assert sorted(os.listdir(tmp_path / "models")) == ["net_d_10.pth", "net_d_9.pth", "net_g_10.pth", "net_g_9.pth"]


def test_a_manifest_cannot_point_outside_the_experiment(tmp_path):
    folder = CheckpointFolder(tmp_path)
    save(folder, 5)
    manifest = tmp_path / "training_states/5.json"
    content = json.loads(manifest.read_text())
    content["files"]["models/../../secret"] = {"sha256": "0", "bytes": 0}
    manifest.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="none of a checkpoint's"):
        folder.load(tmp_path / "training_states/5.state")


def test_a_missing_state_names_those_there_are(tmp_path):
    folder = CheckpointFolder(tmp_path)
    save(folder, 5)
    with pytest.raises(CheckpointError, match=r"7\.state does not exist; saved states: 5\.state"):
        folder.load(tmp_path / "training_states/7.state")


class _Canary:
    def __reduce__(self):
        return os.mkdir, ("canary",)


@pytest.mark.parametrize("write", [functools.partial(pickle.dump, protocol=2), torch.save])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    with open("evil.pth", "wb") as file:
        write({"params": _Canary()}, file)
    with pytest.raises(CheckpointError, match=r"evil\.pth was not loaded: it holds Python objects"):
        load_tensors("evil.pth")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 and no more"])
def test_files_that_are_no_checkpoints_are_named(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pth was not loaded: it is damaged or no checkpoint"):
        load_tensors(tmp_path / "x.pth")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"new, half of it")
        raise OSError("disk full")

    with pytest.raises(CheckpointError, match=r"cannot save .*disk full"):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
