"""The range of a network's images, where no key says it: tried on a picture."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from basicsr.archs import build_network
from basicsr.archs.recognition import Recognised

_SIDE = 24
# Trained networks return the picture, enlarged, within 0.0003; with the wrong range they are off by 0.003 at least.
_WITHIN = 0.001
_TIMES_BETTER = 5


def with_tried_range(found: Recognised) -> Recognised:
    """The same network with the range of [0, 1] and [0, 255] at which its outputs look like its inputs.

    Only where the range was assumed, and where the image is enlarged: networks that restore add their input to what
    they put out, which hides the range. Where neither range fits, as with untrained weights, it stays.
    """
    assumed = next((text for text in found.assumed if text.startswith("img_range ")), None)
    if assumed is None or found.scale == 1:
        return found
    given = float(assumed.removeprefix("img_range "))
    error = _difference(found, given)
    if error is None or error < _WITHIN:
        return found
    other = 1.0 if given > 1 else 255.0
    better = _difference(found, other)
    if better is None or better > _WITHIN or better * _TIMES_BETTER > error:
        return found
    note = f"its images are in [0, {other:g}]: with {given:g}, as published, its outputs are unlike its inputs"
    others = tuple(text for text in found.assumed if text != assumed)
    return replace(found, options={**found.options, "img_range": other}, assumed=others, notes=(*found.notes, note))


@torch.no_grad()
def _difference(found: Recognised, img_range: float) -> float | None:
    """How far the outputs for a smooth picture, made small again, are from it (root mean square); None if it fails."""
    options = {**found.options, "img_range": img_range}
    colours = next(options[key] for key in ("num_in_ch", "in_chans", "img_channel") if key in options)
    try:
        network = build_network(options).eval()
        network.load_state_dict(found.state, strict=False)
        picture = _picture(colours)
        output = network(picture)
        small = F.avg_pool2d(output, output.shape[-1] // _SIDE)
        inner = (small - picture)[..., 4:-4, 4:-4]
    except Exception:  # whatever a network raises on weights or a size that do not suit it
        return None
    return inner.square().mean().sqrt().item() if torch.isfinite(inner).all() else None


def _picture(colours: int) -> Tensor:
    """A smooth picture (1, C, H, W) of values between 0.3 and 0.7."""
    rows, columns = torch.meshgrid(*(torch.linspace(0, 1, _SIDE),) * 2, indexing="ij")
    waves = [0.5 + 0.2 * torch.sin(4 * rows + (3 - channel) * columns + channel) for channel in range(colours)]
    return torch.stack(waves)[None]
