"""Compares our losses and metrics with those of the published BasicSR 1.4.2 on random inputs.

Needs a second environment with basicsr 1.4.2 and its torch; the reference is run there by a subprocess, since both
packages are imported as `basicsr`:

    python scripts/reference/losses_metrics.py --reference-python <that environment>/bin/python

Prints each difference, relative to the reference's value, and returns 1 if one exceeds 1e-6.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

VGG_TYPES = ("vgg19", "vgg16_bn")
VGG_LAYERS = {"conv1_2": 0.5, "relu2_2": 1.0, "pool3": 0.25, "conv4_1": 2.0}
SHAPES = ((64, 48, 3), (37, 91, 3), (40, 40, 1), (51, 33))


def fill(network: nn.Module) -> None:
    """The same weights on both sides: by position, not by name."""
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        spread = 0.1 if parameter.dim() < 2 else (2 / parameter[0].numel()) ** 0.5
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * spread
        parameter.requires_grad_(False)
    network.double().eval()


def reference_perceptual_loss(vgg_type: str, options: dict[str, Any]) -> nn.Module:
    """basicsr's PerceptualLoss on an untrained VGG, where it would download a trained one."""
    from torchvision.models import vgg

    from basicsr.losses import build_loss

    build = getattr(vgg, vgg_type)
    setattr(vgg, vgg_type, lambda pretrained: build(weights=None))
    loss = build_loss({"type": "PerceptualLoss", "vgg_type": vgg_type, "layer_weights": VGG_LAYERS, **options})
    setattr(vgg, vgg_type, build)
    return loss


def loss_figures(reference: bool) -> dict[str, list[float]]:
    """Values of every loss on float64 inputs, each followed by its gradient's sum of squares."""
    generator = torch.Generator().manual_seed(1)
    pred, target, weight = (torch.rand(2, 3, 24, 20, generator=generator, dtype=torch.float64) for _ in range(3))
    pred.requires_grad_()
    figures: dict[str, list[float]] = {}

    def note(name: str, loss: torch.Tensor) -> None:
        (gradient,) = torch.autograd.grad(loss.sum(), pred, retain_graph=True)
        figures[name] = [*loss.detach().flatten()[:3].tolist(), float(gradient.square().sum())]

    from basicsr.losses import build_loss, gradient_penalty_loss, r1_penalty

    for reduction in ("mean", "sum", "none"):
        options = {"loss_weight": 0.7, "reduction": reduction}
        for name in ("L1Loss", "MSELoss", "CharbonnierLoss"):
            loss = build_loss({"type": name, **options})
            for label, given in (("", None), (" weight", weight), (" grey weight", weight[:, :1])):
                note(f"{name} {reduction}{label}", loss(pred, target, weight=given))
        if reduction != "none":
            loss = build_loss({"type": "WeightedTVLoss", **options})
            note(f"WeightedTVLoss {reduction}", loss(pred))
            note(f"WeightedTVLoss {reduction} weight", loss(pred, weight=weight))
    for kind in ("vanilla", "lsgan", "wgan", "wgan_softplus", "hinge"):
        options = {"gan_type": kind, "real_label_val": 0.9, "fake_label_val": 0.1, "loss_weight": 0.3}
        loss = build_loss({"type": "GANLoss", **options})
        for real in (True, False):
            for disc in (True, False):
                note(f"GANLoss {kind} real={real} disc={disc}", loss(pred * 4 - 2, real, is_disc=disc))

    def discriminator(image: torch.Tensor) -> torch.Tensor:
        return (image * pred).sin().sum((1, 2, 3))

    image = target.clone().requires_grad_()
    note("r1_penalty", r1_penalty(discriminator(image), image))
    for label, given in (("", None), (" weight", weight)):
        torch.manual_seed(5)
        note(f"gradient_penalty_loss{label}", gradient_penalty_loss(discriminator, target, weight, weight=given))
    for vgg_type in VGG_TYPES:
        for criterion in ("l1", "fro"):
            options = {"criterion": criterion, "style_weight": 3.0, "perceptual_weight": 0.6}
            if reference:
                loss = reference_perceptual_loss(vgg_type, options)
            else:
                layers = {"layer_weights": VGG_LAYERS, "vgg_type": vgg_type, "vgg_weights": "random"}
                loss = build_loss({"type": "PerceptualLoss", **layers, **options})
            assert isinstance(loss.vgg, nn.Module)
            fill(loss.vgg)
            loss.double()
            for part, value in zip(("perceptual", "style"), loss(pred, target), strict=True):
                note(f"PerceptualLoss {vgg_type} {criterion} {part}", value)
    return figures


def metric_figures() -> dict[str, list[float]]:
    """PSNR and SSIM of random pairs."""
    from basicsr.metrics import calculate_metric

    generator = np.random.default_rng(2)
    figures = {}
    for shape in SHAPES:
        img = generator.integers(0, 256, shape, dtype=np.uint8)
        noise = generator.normal(0, 12, shape)
        img2 = np.clip(img + noise, 0, 255).astype(np.uint8)
        for kind in ("calculate_psnr", "calculate_ssim"):
            for crop_border in (0, 4):
                for luma in (False, True):
                    options = {"type": kind, "crop_border": crop_border, "test_y_channel": luma}
                    value = calculate_metric({"img": img, "img2": img2}, options)
                    figures[f"{kind} {shape} crop_border={crop_border} luma={luma}"] = [float(value)]
    return figures


def compare(reference_python: str) -> int:
    """Prints the differences; 1 if one is too large."""
    # isolated, so that the reference's basicsr is found and not this repository's
    command = [reference_python, "-I", __file__, "--print-reference"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    theirs: dict[str, list[float]] = json.loads(output.splitlines()[-1])
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    ours = {**loss_figures(reference=False), **metric_figures()}
    assert ours.keys() == theirs.keys()
    largest: dict[str, float] = {}
    for name, values in ours.items():
        difference = float(np.max(np.abs(np.subtract(values, theirs[name])) / np.maximum(np.abs(theirs[name]), 1e-12)))
        print(f"{difference:9.2e}  {name}: {values[0]:.10g}")
        kind = name.split()[0]
        largest[kind] = max(difference, largest.get(kind, 0.0))
    for kind, difference in largest.items():
        print(f"largest of {kind}: {difference:.2e}")
    return int(max(largest.values()) > 1e-6)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", help="Python of the environment that holds basicsr 1.4.2")
    parser.add_argument("--print-reference", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.print_reference:
        sys.path.append(str(Path(__file__).resolve().parent))
        importlib.import_module("torchvision_for_basicsr").prepare_torchvision()
        print(json.dumps({**loss_figures(reference=True), **metric_figures()}))
        return 0
    if not arguments.reference_python:
        parser.error("--reference-python is required")
    return compare(arguments.reference_python)


if __name__ == "__main__":
    sys.exit(main())
