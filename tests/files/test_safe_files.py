"""State dicts out of files that hold other things: the same tensors as torch.load's, and nothing of the rest runs.

Every attack is first shown to work: read by Python's own unpickler, it makes a folder named canary.
"""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from basicsr.files.safe_pickles import PLACEHOLDER, Function, Storage
from basicsr.files.torch_files import _Archive, load_state_dict_only, load_tensors
from basicsr.utils.errors import CheckpointError


def lightning_content() -> dict[str, object]:
    """What Lightning puts into a checkpoint, with classes of modules that exist for as long as it is saved."""

    def module(name: str, **members: type) -> None:
        made = types.ModuleType(name)
        for key, value in members.items():
            value.__module__, value.__qualname__ = name, key
            setattr(made, key, value)
        sys.modules[name] = made

    class ModelCheckpoint:
        pass

    class AttributeDict(dict):
        pass

    class DictConfig:
        def __getstate__(self):
            return {"_content": {"ch": 128}, "_parent": self.parent}

    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.utilities", "omegaconf"):
        module(name)
    module("pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint=ModelCheckpoint)
    module("pytorch_lightning.utilities.parsing", AttributeDict=AttributeDict)
    module("omegaconf.dictconfig", DictConfig=DictConfig)
    config = DictConfig()
    config.parent = config
    network, optimizer = lightning_training()
    return {
        "epoch": 3,
        "global_step": 70,
        "pytorch-lightning_version": "1.0.8",
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.5), "best_model_path": "x.ckpt"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "state_dict": network.state_dict(),
        "hparams_name": "kwargs",
        "hyper_parameters": AttributeDict(ddconfig=config, monitor="val/rec_loss", lr=1e-4),
    }


def lightning_training() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    return network, optimizer


@pytest.fixture(scope="module")
def lightning_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as Lightning writes it, where its classes exist; afterwards they do not."""
    path = tmp_path_factory.mktemp("lightning") / "last.ckpt"
    try:
        torch.save(lightning_content(), path)
    finally:
        for name in [name for name in sys.modules if name.startswith(("pytorch_lightning", "omegaconf"))]:
            del sys.modules[name]
    return path


def test_a_lightning_checkpoint_gives_its_weights_and_imports_nothing(lightning_file):
    with pytest.raises(CheckpointError, match="Python objects other than tensors"):
        load_tensors(lightning_file)
    modules = set(sys.modules)
    state = load_state_dict_only(lightning_file)
    assert not {name for name in set(sys.modules) - modules if name.startswith(("pytorch_lightning", "omegaconf"))}
    network, _ = lightning_training()
    assert list(state) == list(network.state_dict())
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_only_the_tensors_asked_for_are_read(lightning_file, monkeypatch):
    read = []
    monkeypatch.setattr(
        _Archive,
        "read_into",
        lambda self, name, to, own=_Archive.read_into: read.append(name) or own(self, name, to),
    )
    assert list(load_state_dict_only(lightning_file, prefixes=("0.",))) == ["0.weight", "0.bias"]
    assert sum(name.startswith("data/") for name in read) == 2
    with pytest.raises(CheckpointError, match=r"holds no tensors that begin with encoder\. or x, neither under 's'"):
        load_state_dict_only(lightning_file, "s", ("encoder.", "x"))


def many_kinds() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(4, 6, generator=generator)
    dtypes = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
    state = {str(dtype): (base * 9).to(dtype) for dtype in [*dtypes, torch.uint8, torch.bool]}
    weight = torch.nn.Parameter(base + 1)
    views = {"transposed": base.T, "slice": base[1:3, ::2], "scalar": base[2, 3], "empty": torch.empty(0, 3)}
    last = torch.rand(2, 3, 4, 5, generator=generator).contiguous(memory_format=torch.channels_last)
    return {**state, **views, "base": base, "parameter": weight, "channels_last": last}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("under", ["state_dict", None])
def test_tensors_are_those_of_torch_load(tmp_path, zipped, under):
    path = tmp_path / "x.pth"
    content = {under: many_kinds(), "epoch": 3} if under else many_kinds()
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    wanted = torch.load(path, weights_only=True)
    wanted = wanted[under] if under else wanted
    found = load_state_dict_only(path)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name].dtype, found[name].stride()) == (value.dtype, value.stride()), name
        assert torch.equal(found[name], value), name
    found["base"].zero_()
    assert found["slice"].abs().sum() == 0, "views of one storage stay views of it"


# Attacks. A fragment leaves one object on the unpickler's stack.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def data(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


MKDIR, CANARY = name_of("os", "mkdir"), text("canary")
EVIL = call(MKDIR, CANARY)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("canary",)


ATTACKS = {
    "reduce": EVIL,
    "posix": call(name_of("posix", "mkdir"), CANARY),
    "eval": call(name_of("builtins", "eval"), text("__import__('os').mkdir('canary')")),
    "python 2's name": call(name_of("__builtin__", "eval"), text("__import__('os').mkdir('canary')")),
    "stack global": call(text("os") + text("mkdir") + b"\x93", CANARY),
    "dotted name": call(text("os") + text("path.os.mkdir") + b"\x93", CANARY),
    "dotted name behind an allowed module": call(text("torch._utils") + text("sys.modules.get") + b"\x93", text("os")),
    "inst": b"(" + CANARY + b"ios\nmkdir\n",
    "obj": b"(" + MKDIR + CANARY + b"o",
    "newobj": name_of("subprocess", "Popen") + b"(" + text("x") + b"t\x81",
    "newobj_ex": name_of("builtins", "object") + b")}\x92",
    "getattr": call(
        call(name_of("builtins", "getattr"), call(name_of("builtins", "__import__"), text("os")), text("mkdir")),
        CANARY,
    ),
    "map": call(name_of("builtins", "list"), call(name_of("builtins", "map"), MKDIR, b"(" + CANARY + b"t")),
    "reconstructor": call(
        name_of("copyreg", "_reconstructor"), name_of("builtins", "list"), name_of("builtins", "list"), EVIL + b"\x85"
    ),
    "setstate": call(name_of("functools", "partial"), name_of("builtins", "len"))
    + b"(" + MKDIR + b"(" + CANARY + b"t}}tb" + b")R",
    "persistent id": b"(" + text("storage") + EVIL + text("0") + text("cpu") + b"K\x01tQ",
    "persistent module": b"(" + text("module") + EVIL + text("x") + text("y") + b"tQ",
    "load from bytes": call(name_of("torch.storage", "_load_from_bytes"), data(saved(_Evil()))),
    "torch.load": call(name_of("torch.serialization", "load"), call(name_of("io", "BytesIO"), data(saved(_Evil())))),
    "pickle in a pickle": call(name_of("pickle", "loads"), data(pickle.dumps(_Evil()))),
    "as a key": b"}" + EVIL + b"Ns",
    "among a tensor's hooks": call(
        name_of("torch._utils", "_rebuild_tensor_v2"), b"N", b"K\x00", b")", b")", b"\x89", EVIL
    ),
}  # fmt: skip
# Those that Python's own unpickler cannot show: it has no persistent ids, or the names do no harm by themselves.
HARMLESS_TO_PICKLE = {
    *("dotted name behind an allowed module", "newobj", "newobj_ex", "load from bytes", "torch.load"),
    *("persistent id", "persistent module", "among a tensor's hooks"),
}


def archive(path: Path, pickled: bytes, *, compression: int = zipfile.ZIP_STORED, numbers: bytes = bytes(16)) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", numbers)
    return path


def tensor(size: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85", offset: bytes = b"K\x00", key: str = "0") -> bytes:
    storage = b"(" + text("storage") + name_of("torch", "FloatStorage") + text(key) + text("cpu") + b"K\x04tQ"
    ordered = call(name_of("collections", "OrderedDict"))
    return call(name_of("torch._utils", "_rebuild_tensor_v2"), storage, offset, size, stride, b"\x89", ordered)


def checkpoint(beside: bytes = b"N", weight: bytes | None = None, protocol: int = 4) -> bytes:
    """{'evil': ..., 'state_dict': {'w': tensor}}"""
    state = b"}" + text("w") + (tensor() if weight is None else weight) + b"s"
    return b"\x80" + bytes([protocol]) + b"}(" + text("evil") + beside + text("state_dict") + state + b"u."


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_do_nothing_and_the_tensors_are_read(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attack, protocol = ATTACKS[name], 2 if name == "python 2's name" else 4
    if name not in HARMLESS_TO_PICKLE:
        pickle.loads(b"\x80" + bytes([protocol]) + attack + b".")
        os.rmdir("canary")
    state = load_state_dict_only(archive(tmp_path / "x.ckpt", checkpoint(attack, protocol=protocol)))
    assert list(state) == ["w"] and torch.equal(state["w"], torch.zeros(4))
    assert not Path("canary").exists()
    with pytest.raises(CheckpointError, match="holds no tensors, neither under"):
        load_state_dict_only(archive(tmp_path / "x.ckpt", checkpoint(weight=attack, protocol=protocol)))
    assert not Path("canary").exists()


@pytest.mark.parametrize("named", ["torch._utils _rebuild_tensor_v2", "collections OrderedDict", "torch FloatStorage"])
@pytest.mark.parametrize("state", ["dict", "slots"])
def test_a_pickle_cannot_write_to_what_it_is_handed(named, state, tmp_path):
    """BUILD sets attributes of an object that has no __setstate__: were it a class of ours, for good."""
    attributes = b"}(" + text("poisoned") + b"\x88" + text("call") + MKDIR + b"u"
    build = name_of(*named.split()) + (b"N" + attributes + b"\x86" if state == "slots" else attributes) + b"b"
    with pytest.raises(CheckpointError, match="its pickle has a state for a"):
        load_state_dict_only(archive(tmp_path / "x.ckpt", checkpoint(build)))
    for handed in (Function, torch.float32, Storage, PLACEHOLDER, torch.FloatStorage, collections.OrderedDict):
        assert not hasattr(handed, "poisoned")
    ordered = call(name_of("collections", "OrderedDict"))
    state_of = b"}(" + text("items") + MKDIR + text("_metadata") + b"}u" + b"b"
    path = archive(tmp_path / "x.ckpt", b"\x80\x02" + ordered + state_of.replace(MKDIR, b"K\x01") + b".")
    content = load_tensors(path)
    assert vars(content) == {"_metadata": {}}, "an attribute `items` would hide the method"


def refused(path: Path, reason: str = "") -> None:
    with pytest.raises(CheckpointError, match=f"x.ckpt was not loaded: it.*{reason}") as error:
        load_state_dict_only(path)
    assert "\n" not in str(error.value)


LONG = struct.pack("<Q", 1000)  # more than there is


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (
            checkpoint(weight=tensor(size=b"K\x05\x85", stride=b"K\x00\x85")),
            "repeats its numbers",
        ),
        (checkpoint(weight=tensor(size=b"K\x05\x85")), "larger than its storage"),
        (checkpoint(weight=tensor(stride=b"K\x02\x85")), "out of bounds"),
        (checkpoint(weight=tensor(offset=b"K\x01")), "out of bounds"),
        (checkpoint(weight=tensor(stride=b"J\xff\xff\xff\xff\x85")), "has no shape"),
        (checkpoint(weight=tensor(size=b"\x8a\x09" + bytes(7) + b"\x80\x00\x85")), "has no shape"),  # 2^63
        (checkpoint(weight=tensor(size=b"N")), "has no shape"),
        (checkpoint(weight=tensor(size=b"X\x01\x00\x00\x00a\x85")), "has no shape"),
        (checkpoint(weight=tensor(key="../../etc/passwd")), "etc/passwd. has not 4 numbers|is missing"),
        (checkpoint(b"\x8e" + LONG), "1000"),
        (checkpoint(b"\x8d" + LONG), "1000"),
        (checkpoint(b"\x96" + LONG), "1000"),
        (checkpoint(b"\x95" + LONG), ""),
        (checkpoint(b"\x82\x01"), "unregistered extension code 1"),
        (checkpoint(b"\x97"), ""),
        (b"", ""),
        (b"\x80\x04" + b"0" * 10 + b".", ""),
    ],
)
def test_impossible_tensors_and_pickles_are_refused(pickled, reason, tmp_path):
    refused(archive(tmp_path / "x.ckpt", pickled), reason)


def test_a_pickle_cannot_have_a_dict_copied_over_and_over(tmp_path):
    filled = b"}(" + b"".join(b"J" + struct.pack("<i", number) + b"N" for number in range(2000)) + b"u\x85q\x01"
    copies = (name_of("collections", "OrderedDict") + b"q\x020") + b"h\x02h\x01R" * 10
    path = archive(tmp_path / "x.ckpt", checkpoint(b"(" + filled + copies + b"t"))
    tracemalloc.start()
    try:
        refused(path, "too many copies of its own parts")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_archives_that_unfold_are_refused(tmp_path):
    bomb = archive(tmp_path / "x.ckpt", checkpoint(), compression=zipfile.ZIP_DEFLATED, numbers=bytes(1 << 22))
    assert bomb.stat().st_size < 1 << 14
    refused(bomb, "its files are compressed")
    overlapping = bytearray(archive(tmp_path / "x.ckpt", checkpoint()).read_bytes())
    first, last = (overlapping.find(b"PK\x01\x02"), overlapping.rfind(b"PK\x01\x02"))
    assert first != last
    for at in (first, last):
        overlapping[at + 20 : at + 28] = struct.pack("<II", 400, 400)  # both sizes
    (tmp_path / "x.ckpt").write_bytes(overlapping)
    refused(tmp_path / "x.ckpt")
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as file:
        file.writestr("readme.txt", "x")
    refused(tmp_path / "x.ckpt", "s a ZIP archive of other files")


def test_another_byte_order_is_turned_round(tmp_path):
    numbers = np.arange(4, dtype=np.float32)
    path = archive(tmp_path / "x.ckpt", checkpoint(), numbers=numbers.byteswap().tobytes())
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/byteorder", {"little": "big", "big": "little"}[sys.byteorder])
    assert torch.equal(load_state_dict_only(path)["w"], torch.from_numpy(numbers))


def test_numbers_of_a_memo_need_not_follow_each_other(tmp_path):
    path = archive(tmp_path / "x.ckpt", checkpoint(b"Nr" + struct.pack("<I", 1000)))
    assert list(load_state_dict_only(path)) == ["w"]


def test_truncated_and_flipped_files_are_damaged(lightning_file, tmp_path):
    content = lightning_file.read_bytes()
    path = tmp_path / "x.ckpt"
    for length in (0, 10, len(content) // 2, len(content) - 30):
        path.write_bytes(content[:length])
        refused(path)
    at = content.find(load_state_dict_only(lightning_file)["0.weight"].numpy().tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(CheckpointError, match=r"is damaged \(CRC-32 of .*/data/\d+' differs\); fetch or copy it again"):
        load_state_dict_only(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.ckpt does not exist; check the path"):
        load_state_dict_only(tmp_path / "x.ckpt")


def test_any_pickle_is_read_or_refused(lightning_file, tmp_path):
    """Random changes of a real pickle's bytes end in a state dict or in the one kind of error."""
    with zipfile.ZipFile(lightning_file) as file:
        members = {name: file.read(name) for name in file.namelist()}
    (pickled,) = (name for name in members if name.endswith("data.pkl"))
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        changed = bytearray(members[pickled])
        for at in generator.integers(0, len(changed), 3):
            changed[at] = generator.integers(256)
        with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as file:
            for name, content in members.items():
                file.writestr(name, bytes(changed) if name == pickled else content)
        try:
            state = load_state_dict_only(tmp_path / "x.ckpt")
            outcomes.add(all(isinstance(value, torch.Tensor) for value in state.values()))
        except CheckpointError:
            outcomes.add("refused")
    assert outcomes == {True, "refused"}
