"""Files of networks that are none of PyTorch's weights: which they are, by content where it tells, and what to do."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

_WEB_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
_FROM = "give the PyTorch weights that it was made from"
_TENSORFLOW = "only PyTorch's weights are read: give a PyTorch release of the network"
_SAVE = "load it with its authors' code, and save a plain state dict, `network.state_dict()`, by torch.save"

# How files begin.
_BEGINNINGS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"\x1f\x8b",), "it is compressed by gzip; unpack it"),
    ((b"BZh",), "it is compressed by bzip2; unpack it"),
    ((b"\xfd7zXZ",), "it is compressed by xz; unpack it"),
    ((b"\x28\xb5\x2f\xfd",), "it is compressed by zstd; unpack it"),
    ((b"7z\xbc\xaf",), "it is a 7-Zip archive; unpack it"),
    ((b"Rar!",), "it is a RAR archive; unpack it"),
    ((b"\x93NUMPY",), "it is an array of NumPy; give weights saved by torch.save or safetensors"),
    ((b"\x89HDF",), f"it is an HDF5 file, as Keras writes them; {_TENSORFLOW}"),
    ((b"GGUF",), f"it is a GGUF file, as llama.cpp and stable-diffusion.cpp read them; {_FROM}"),
    ((b"ptrt", b"ftrt"), f"it is an engine of TensorRT; {_FROM}"),
    ((b"7767517",), f"it is a graph of ncnn (.param); {_FROM}"),
    ((b"MATLAB ",), "it is a MAT-file of MATLAB, as MatConvNet writes them; give a PyTorch release of the network"),
    ((b"model_checkpoint_path",), f"it is the list of a folder of TensorFlow checkpoints; {_TENSORFLOW}"),
    (
        (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM"),
        "it is an image; give a file of weights, .pth or .safetensors",
    ),
)
# What files of no telling beginning are by their endings. An ending that PyTorch's files may have stands here as well:
# these are read first by what they are.
_ENDINGS: tuple[tuple[str, str], ...] = (
    (r"\.onnx", f"it is an ONNX graph; {_FROM}"),
    (r"\.(mlmodel|mlmodelc|mlpackage)", f"it is a network of Core ML; {_FROM}"),
    (r"\.(engine|trt|plan)", f"it is an engine of TensorRT; {_FROM}"),
    (r"\.tflite", f"it is a network of TensorFlow Lite; {_FROM}"),
    (r"\.mnn", f"it is a network of MNN; {_FROM}"),
    (r"\.(pb|index|meta|data-\d+-of-\d+)", f"it is a graph or checkpoint of TensorFlow; {_TENSORFLOW}"),
    (r"\.(pdparams|pdopt|pdmodel|pdiparams)", "it is a file of Paddle; give a PyTorch release of the network"),
    (r"\.(caffemodel|prototxt)", "it is a network of Caffe; give a PyTorch release of the network"),
    (r"\.t7", "it is a file of Torch 7, before PyTorch; give a PyTorch release of the network"),
)
_PROTOBUF_OF_ONNX = re.compile(
    rb"\x08[\x03-\x10]\x12.(pytorch|tf2onnx|onnx|keras2onnx|CNTK|skl2onnx|paddle)", re.DOTALL
)
_PROTOBUF_OF_CORE_ML = re.compile(rb"\x08[\x01-\x0c]\x12.{1,3}\x0a", re.DOTALL)
_PROTOBUF_OF_MINDSPORE = re.compile(rb"\x0a.{1,4}\x0a[\x01-\x7f][\w.]+\x12", re.DOTALL)


def kind_by_content(head: bytes) -> str | None:
    """What a file is, and what to do, where its first 512 bytes show that it is none of PyTorch's weights."""
    text = head.lstrip().lower()
    if not head:
        return "it is damaged or no checkpoint (it is empty); fetch or copy it again"
    if text.startswith(b"<?xml") and b"<net " in text:
        return f"it is a network of OpenVINO; {_FROM}"
    if text.startswith(_WEB_PAGES):
        return "it is a web page, not the file behind it; open the link in a browser and save the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; run `git lfs pull`"
    if head[257:262] == b"ustar":
        return "it is a tar archive, as PyTorch before 0.1.10 wrote them; unpack it, or save the weights anew"
    if head[4:8] == b"TFL3":
        return f"it is a network of TensorFlow Lite; {_FROM}"
    if _PROTOBUF_OF_ONNX.match(head):
        return f"it is an ONNX graph; {_FROM}"
    return next((reason for beginnings, reason in _BEGINNINGS if head.startswith(beginnings)), None)


def kind_by_name(path: Path, head: bytes) -> str | None:
    """As `kind_by_content`, of a file that is neither archive, pickle nor safetensors, by its ending."""
    name = path.name.lower()
    if found := next((reason for ending, reason in _ENDINGS if re.search(rf"{ending}$", name)), None):
        return found
    if name.endswith(".bin"):
        return f"it is a file of raw numbers, as ncnn (.bin beside .param) and OpenVINO write them; {_FROM}"
    if _PROTOBUF_OF_MINDSPORE.match(head):
        return "it is a checkpoint of MindSpore; give a PyTorch release of the network"
    if _PROTOBUF_OF_CORE_ML.match(head):
        return f"it is a network of Core ML; {_FROM}"
    return None


def kind_of_folder(path: Path) -> str | None:
    """As `kind_by_content`, of a folder that is a network; None for other folders."""
    if (path / "Manifest.json").is_file() or path.suffix.lower() in (".mlpackage", ".mlmodelc"):
        return f"it is a network of Core ML; {_FROM}"
    if (path / "saved_model.pb").is_file():
        return f"it is a SavedModel of TensorFlow; {_TENSORFLOW}"
    if (path / "checkpoint").is_file():
        return f"it is a folder of TensorFlow checkpoints; {_TENSORFLOW}"
    return None


def kind_of_archive(names: Collection[str]) -> str | None:
    """What a ZIP archive is, by the names in it, if it is a network but none of torch.save."""
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        return "it is a TorchScript program, which would have to be run; give its weights, saved by torch.save"
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        return "it is a program of torch.export, which would have to be run; give its weights, saved by torch.save"
    if "model.weights.h5" in names:
        return f"it is a network of Keras; {_TENSORFLOW}"
    if names and all(name.endswith(".npy") for name in names):
        return "it is an archive of NumPy's arrays (.npz); save them as tensors by torch.save or safetensors"
    return None


def advice_on(name: str) -> str:
    """What to do about a file that names a class or function which is no tensor, such as 'model.Net'."""
    shown = repr(name[:100])
    if name.startswith("torch._utils._rebuild_"):
        return f"it holds tensors that are not dense ({shown}); ask for a plain state dict of dense ones"
    could = f"it holds Python objects other than tensors ({shown}), which could run code"
    if name.startswith(("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "hydra.", "argparse.")):
        return f"{could}: hyperparameters, as of a Lightning checkpoint; save its `state_dict` alone by torch.save"
    if name.startswith(("numpy.", "paddle.")):
        return f"{could}: arrays of NumPy or Paddle; save them as tensors by torch.save or safetensors"
    module, _, kind = name.rpartition(".")
    if name.startswith("torch.nn.modules.") or (
        kind[:1].isupper() and module.partition(".")[0] not in ("torch", "builtins")
    ):
        return f"{could}: a whole network seems to be pickled; {_SAVE}"
    return f"{could}; ask for a plain state dict"
