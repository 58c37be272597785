"""Compares the networks with those of basicsr 1.4.2: state dicts, outputs, gradients.

Networks of both sides are filled with the same formula (a sine of each element's place), so no files are needed. With
`--freeze` the reference's figures are printed instead, as tests/archs/test_agreement.py holds them.

    python scripts/reference/networks.py [--freeze]

Run it where basicsr 1.4.2 and PyTorch are installed (basicsr 1.4.2 needs torchvision; a torchvision newer than it, or
without compiled operators, is made to import here).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]

_SWINIR = {
    "img_size": 16,
    "embed_dim": 12,
    "depths": [2, 2],
    "num_heads": [2, 3],
    "window_size": 4,
    "mlp_ratio": 2.0,
    "img_range": 1.0,
}
_PLAIN = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8}

# name: (reference module, class, constructor arguments, height and width of the input)
CASES: dict[str, tuple[str, str, dict[str, Any], tuple[int, int]]] = {
    "edsr_x2": ("edsr_arch", "EDSR", {**_PLAIN, "num_block": 3, "upscale": 2, "res_scale": 0.1}, (9, 12)),
    "edsr_x3": ("edsr_arch", "EDSR", {**_PLAIN, "num_block": 2, "upscale": 3}, (9, 12)),
    "edsr_x4": ("edsr_arch", "EDSR", {**_PLAIN, "num_block": 2, "upscale": 4, "img_range": 1.0}, (9, 12)),
    "rcan_x2": (
        "rcan_arch",
        "RCAN",
        {**_PLAIN, "num_group": 2, "num_block": 2, "squeeze_factor": 4, "upscale": 2, "res_scale": 0.5},
        (9, 12),
    ),
    "rcan_x4": (
        "rcan_arch",
        "RCAN",
        {**_PLAIN, "num_group": 2, "num_block": 2, "squeeze_factor": 2, "upscale": 4},
        (9, 12),
    ),
    "msrresnet_x2": ("srresnet_arch", "MSRResNet", {"num_feat": 8, "num_block": 2, "upscale": 2}, (9, 12)),
    "msrresnet_x3": ("srresnet_arch", "MSRResNet", {"num_feat": 8, "num_block": 2, "upscale": 3}, (9, 12)),
    "msrresnet_x4": ("srresnet_arch", "MSRResNet", {"num_feat": 8, "num_block": 2, "upscale": 4}, (9, 12)),
    "swinir_pixelshuffle": (
        "swinir_arch",
        "SwinIR",
        {**_SWINIR, "upscale": 4, "upsampler": "pixelshuffle"},
        (16, 16),
    ),
    "swinir_other_size": (
        "swinir_arch",
        "SwinIR",
        {**_SWINIR, "upscale": 3, "upsampler": "pixelshuffle", "resi_connection": "3conv"},
        (12, 20),
    ),
    "swinir_one_row_of_windows": (
        "swinir_arch",
        "SwinIR",
        {**_SWINIR, "upscale": 2, "upsampler": "pixelshuffle"},
        (4, 12),
    ),
    "swinir_pixelshuffledirect": (
        "swinir_arch",
        "SwinIR",
        {**_SWINIR, "upscale": 3, "upsampler": "pixelshuffledirect", "qkv_bias": False, "qk_scale": 0.3},
        (16, 16),
    ),
    "swinir_nearest_conv": (
        "swinir_arch",
        "SwinIR",
        {**_SWINIR, "upscale": 4, "upsampler": "nearest+conv", "patch_norm": False},
        (16, 16),
    ),
    "swinir_no_upsampler": (
        "swinir_arch",
        "SwinIR",
        {**_SWINIR, "upscale": 1, "upsampler": "", "ape": True, "img_range": 255.0},
        (16, 16),
    ),
    "swinir_window_as_image": (
        "swinir_arch",
        "SwinIR",
        {**_SWINIR, "img_size": 8, "window_size": 8, "upscale": 2, "upsampler": "pixelshuffle"},
        (16, 8),
    ),
    "swinir_patch_size": (
        "swinir_arch",
        "SwinIR",
        {**_SWINIR, "img_size": [32, 48], "patch_size": 2, "upscale": 2, "upsampler": "pixelshuffle"},
        (16, 24),
    ),
    "vgg_128": ("discriminator_arch", "VGGStyleDiscriminator", {"num_in_ch": 3, "num_feat": 2}, (128, 128)),
    "vgg_256": (
        "discriminator_arch",
        "VGGStyleDiscriminator",
        {"num_in_ch": 3, "num_feat": 2, "input_size": 256},
        (256, 256),
    ),
    "unet": ("discriminator_arch", "UNetDiscriminatorSN", {"num_in_ch": 3, "num_feat": 4}, (16, 24)),
    "unet_no_skips": (
        "discriminator_arch",
        "UNetDiscriminatorSN",
        {"num_in_ch": 3, "num_feat": 4, "skip_connection": False},
        (16, 24),
    ),
}

# The paper's pairs and public checkpoints, whose state dicts alone are compared.
PUBLISHED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "edsr_teacher": (
        "edsr_arch",
        "EDSR",
        {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 256, "num_block": 32, "res_scale": 0.1},
    ),
    "rcan_teacher": ("rcan_arch", "RCAN", {"num_in_ch": 3, "num_out_ch": 3, "num_block": 20}),
    "swinir_teacher": (
        "swinir_arch",
        "SwinIR",
        {
            "upscale": 4,
            "img_size": 48,
            "window_size": 8,
            "embed_dim": 180,
            "depths": [6] * 6,
            "num_heads": [6] * 6,
            "mlp_ratio": 2.0,
            "upsampler": "pixelshuffle",
        },
    ),
    "swinir_real_world": (
        "swinir_arch",
        "SwinIR",
        {
            "upscale": 4,
            "img_size": 64,
            "window_size": 8,
            "embed_dim": 240,
            "depths": [6] * 9,
            "num_heads": [8] * 9,
            "mlp_ratio": 2.0,
            "upsampler": "nearest+conv",
            "resi_connection": "3conv",
        },
    ),
    "msrresnet": ("srresnet_arch", "MSRResNet", {}),
    "unet_discriminator": ("discriminator_arch", "UNetDiscriminatorSN", {"num_in_ch": 3}),
    "vgg_discriminator": ("discriminator_arch", "VGGStyleDiscriminator", {"num_in_ch": 3, "num_feat": 64}),
}


def fill_by_formula(network: nn.Module) -> nn.Module:
    """Sets every floating-point entry of the state dict, attention masks aside, by a formula; returns the network.

    Entry i of the k-th tensor (in the order of the state dict) becomes 2 sin(0.7 i + 0.013 i^2 + k) over the root of
    the tensor's entries per output channel (1 / 5 of the sine for vectors), which keeps features at about the size of
    the image; norms' weights and running variances get 1 added. Vectors of spectral norms are the singular ones.
    """
    state = network.state_dict()
    for k, (name, tensor) in enumerate(state.items()):
        if not tensor.is_floating_point() or name.endswith("attn_mask"):
            continue
        index = torch.arange(tensor.numel(), dtype=torch.float64)
        values = 2 * torch.sin(0.7 * index + 0.013 * index**2 + k).view(tensor.shape)
        values /= tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 10
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            values += 1
        state[name] = values.to(tensor.dtype)
    for name in [name for name in state if name.endswith("weight_orig")]:
        left, _, right = torch.linalg.svd(state[name].flatten(1).double(), full_matrices=False)
        state[name.replace("orig", "u")] = left[:, 0].float()
        state[name.replace("orig", "v")] = right[0].float()
    network.load_state_dict(state)
    return network


def formula_image(height: int, width: int) -> Tensor:
    """Two images (2, 3, height, width) in [0, 1], by a formula."""
    index = torch.arange(2 * 3 * height * width, dtype=torch.float64)
    return (0.5 + 0.5 * torch.sin(0.37 * index + 0.001 * index**1.5)).float().view(2, 3, height, width)


def state_dict_digest(network: nn.Module) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all names, shapes and types of the state dict, in order."""
    lines = [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in network.state_dict().items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def statistics(output: Tensor) -> list[float]:
    """Mean, root mean square, first, middle and last entry of a tensor."""
    flat = output.detach().double().flatten()
    return [
        flat.mean().item(),
        flat.square().mean().sqrt().item(),
        *(flat[i].item() for i in (0, len(flat) // 2, -1)),
    ]


@contextmanager
def _modules_of(folder: Path | None) -> Iterator[None]:
    """Makes `import basicsr` find the package in `folder`, or the installed one, and forgets it afterwards."""
    path = list(sys.path)
    if folder is not None:
        sys.path.insert(0, str(folder))
    else:
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    try:
        yield
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.split(".")[0] == "basicsr"]:
            del sys.modules[name]


def _load_classes(folder: Path | None, wanted: Mapping[str, Any]) -> dict[str, Any]:
    with _modules_of(folder):
        return {
            class_name: getattr(importlib.import_module(f"basicsr.archs.{module}"), class_name)
            for module, class_name, *_ in wanted.values()
        }


def _run(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """The output in eval, and the gradient of its mean square with respect to the input."""
    image = image.clone().requires_grad_()
    output = network.eval()(image)
    (gradient,) = torch.autograd.grad(output.square().mean(), image)
    return output.detach(), gradient


def compare(ours: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Prints the greatest differences of every case."""
    for label, classes in (("ours", ours), ("reference", reference)):
        print(f"{label}: {classes['SwinIR'].forward.__code__.co_filename}")
    print(f"{'case':28}{'state dict':>12}{'output':>12}{'gradient':>12}{'training':>12}")
    for name, (_, class_name, arguments, size) in CASES.items():
        image = formula_image(*size)
        theirs = fill_by_formula(reference[class_name](**arguments))
        mine = ours[class_name](**arguments)
        same = state_dict_digest(mine) == state_dict_digest(theirs)
        mine.load_state_dict(theirs.state_dict())
        output, gradient = _run(mine, image)
        wanted, wanted_gradient = _run(theirs, image)
        torch.manual_seed(0)
        trained = mine.train()(image)
        torch.manual_seed(0)
        wanted_trained = theirs.train()(image)
        differences = [
            ((a - b).abs().max() / b.abs().max()).item()
            for a, b in ((output, wanted), (gradient, wanted_gradient), (trained, wanted_trained))
        ]
        print(f"{name:28}{'same' if same else 'DIFFERENT':>12}" + "".join(f"{d:12.1e}" for d in differences))
    for name, (_, class_name, arguments) in PUBLISHED.items():
        same = state_dict_digest(ours[class_name](**arguments)) == state_dict_digest(reference[class_name](**arguments))
        print(f"{name:28}{'same' if same else 'DIFFERENT':>12}")


def freeze(reference: Mapping[str, Any]) -> None:
    """Prints the reference's digests and output statistics as a Python dictionary."""
    print("FROZEN = {")
    for name, (_, class_name, arguments, size) in CASES.items():
        network = fill_by_formula(reference[class_name](**arguments)).eval()
        with torch.no_grad():
            figures = ", ".join(f"{value:.7g}" for value in statistics(network(formula_image(*size))))
        print(f'    "{name}": ("{state_dict_digest(network)}", ({figures})),')
    for name, (_, class_name, arguments) in PUBLISHED.items():
        print(f'    "{name}": ("{state_dict_digest(reference[class_name](**arguments))}", None),')
    print("}")


def main() -> None:
    """Reads the command line and compares or freezes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--freeze", action="store_true", help="print the reference's figures for the tests")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    importlib.import_module("torchvision_for_basicsr").prepare_torchvision()
    wanted = {**CASES, **PUBLISHED}
    reference = _load_classes(None, wanted)
    if options.freeze:
        freeze(reference)
    else:
        compare(_load_classes(ROOT, wanted), reference)


if __name__ == "__main__":
    main()
