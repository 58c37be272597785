"""Files of torch.save as real programs write them: equal to what torch.load gives, in type, in bits and in sharing."""

from __future__ import annotations

import collections
import json
import pickle
import struct
from typing import Any

import pytest
import torch
from support import hostile
from torch import nn

from basicsr.files.torch_files import load_tensors, opened, read_safetensors
from basicsr.utils.errors import CheckpointError


def training_state() -> dict[str, Any]:
    """Of a short training: everything that optimizers, schedulers and generators put into files."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 5])
    network(torch.rand(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    return {
        "network": network.state_dict(),
        "optimizers": [optimizer.state_dict()],
        "schedulers": [schedule.state_dict()],
        "generator": torch.get_rng_state(),
        "history": {"loss": [0.5, float("inf"), -0.0, 1e300], 3: None, -1: True, 2.5: b"\x00\xff", (1, "a"): "ä\n"},
        "kinds": [
            torch.float16,
            torch.device("cuda:1"),
            torch.Size([2, 3]),
            1 + 2j,
            {1, "b"},
            1 << 70,
            bytearray(b"x"),
        ],
    }


def tensors() -> dict[str, Any]:
    base = torch.arange(24.0).view(4, 6)
    learning = torch.rand(2, requires_grad=True)
    with_attribute = nn.Parameter(torch.rand(3))
    with_attribute.no_decay = True  # type: ignore[attr-defined]
    dtypes = (torch.float64, torch.bfloat16, torch.int16, torch.bool, torch.complex64, torch.uint16, torch.float8_e5m2)
    return {
        **{str(dtype): base.to(dtype) for dtype in dtypes},
        **{"base": base, "row": base[1], "transposed": base.T, "empty": torch.empty(0, 3), "scalar": base[2, 3]},
        **{"learning": learning, "parameter": nn.Parameter(base, requires_grad=False), "attribute": with_attribute},
    }


def assert_equal(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert (found.dtype, found.stride(), found.storage_offset()) == (
            *(wanted.dtype, wanted.stride(), wanted.storage_offset()),
        )
        assert found.requires_grad == wanted.requires_grad and found.is_leaf
        assert found.shape == wanted.shape and bytes(found.untyped_storage()) == bytes(wanted.untyped_storage())
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted) and getattr(found, "_metadata", None) == getattr(wanted, "_metadata", None)
        for key in wanted:
            assert_equal(found[key], wanted[key])
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_equal(one, other)
    else:
        assert found == wanted


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("make", [training_state, tensors])
def test_what_torch_reads_is_read_the_same(make, zipped, tmp_path):
    content = make()
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = load_tensors(tmp_path / "x.pth")
    # torch itself cannot read the newest types out of old files, though it writes them.
    readable = zipped or make is training_state
    assert_equal(found, torch.load(tmp_path / "x.pth", weights_only=True) if readable else content)
    if make is tensors:
        found["base"].zero_()
        assert not found["row"].any() and not found["parameter"].any(), "views of one storage stay views of it"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_protocol_is_read(protocol, zipped, tmp_path):
    content = training_state()
    torch.save(content, tmp_path / "x.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert_equal(load_tensors(tmp_path / "x.pth"), content)


def test_python_2_and_the_first_versions_of_torch_are_read(tmp_path):
    """Ordered dicts as lists of pairs, names as bytes, and tensors by the first of the functions."""
    pair = b"]" + b"U\x08conv.\xc3\xa4w" + b"a" + hostile.call(
        hostile.name_of("torch._utils", "_rebuild_tensor"),
        *(hostile.storage(more=b"N"), b"K\x01", b"K\x03\x85", b"K\x01\x85"),
    ) + b"a"  # fmt: skip
    content = b"\x80\x02" + hostile.call(hostile.name_of("collections", "OrderedDict"), b"]" + pair + b"a") + b"."
    row = struct.pack("<q4f", 4, 0, 1, 2, 3)
    (tmp_path / "x.pt").write_bytes(hostile.legacy(content, (row,)))
    found = load_tensors(tmp_path / "x.pt")
    assert type(found) is collections.OrderedDict and list(found) == ["conv.äw"]
    assert found["conv.äw"].tolist() == [1, 2, 3]


def test_views_of_storages_in_old_files_are_read(tmp_path):
    """As PyTorch 0.1 shared storages: (key, offset, length) of a view."""
    of = hostile.storage(more=b"(" + hostile.text("view") + b"K\x02K\x02t")
    weight = hostile.tensor(b"K\x02\x85", b"K\x01\x85", of=of)
    (tmp_path / "x.pt").write_bytes(hostile.legacy(hostile.state(weight=weight), (struct.pack("<q4f", 4, 0, 1, 2, 3),)))
    assert load_tensors(tmp_path / "x.pt")["params"]["w"].tolist() == [2, 3]


def test_files_without_checksums_are_read_and_checks_can_be_left_out(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(100)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_tensors(tmp_path / "x.pth")["w"], torch.arange(100))
    (tmp_path / "x.pth").write_bytes(hostile.flipped())
    with pytest.raises(CheckpointError, match="CRC-32 of 'archive/data/0' differs"):
        load_tensors(tmp_path / "x.pth")
    assert load_tensors(tmp_path / "x.pth", checksums=False)["params"]["w"].shape == (4,)


def test_every_bit_of_the_weights_is_under_the_checksum(tmp_path):
    content = hostile.archive(hostile.state(), row=bytes(range(16)))
    at = content.find(bytes(range(16)))
    for bit in range(128):
        changed = bytearray(content)
        changed[at + bit // 8] ^= 1 << bit % 8
        (tmp_path / "x.pth").write_bytes(changed)
        with pytest.raises(CheckpointError, match="CRC-32"):
            load_tensors(tmp_path / "x.pth")


def test_a_module_is_refused_by_its_name(tmp_path):
    for zipped in (True, False):
        torch.save(nn.Sequential(nn.ReLU()), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"'torch\.nn\.modules\.container\.Sequential'.*a plain state dict"):
            load_tensors(tmp_path / "x.pth")


def test_plain_pickles_are_none_of_torch(tmp_path):
    for protocol in range(6):
        (tmp_path / "x.pth").write_bytes(pickle.dumps({"w": [1.5]}, protocol))
        with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
            load_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.uint16, torch.float8_e4m3fn])
def test_safetensors_are_read_as_their_own_library_reads_them(dtype, tmp_path):
    from safetensors.torch import load_file, save_file

    state = {"w": torch.arange(12).view(3, 4).to(dtype), "b": torch.rand(()), "empty": torch.empty(0, 2)}
    save_file(state, tmp_path / "x.safetensors", {"a": "b"})
    with opened(tmp_path / "x.safetensors") as opening:
        found, metadata = read_safetensors(*opening)
    wanted = load_file(tmp_path / "x.safetensors")
    assert metadata == {"a": "b"} and found.keys() == wanted.keys()
    content = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    places = [header[name]["data_offsets"] for name in found]
    assert places == sorted(places), "in the order of the file each time"
    for name, value in wanted.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert bytes(found[name].untyped_storage()) == bytes(value.untyped_storage())
