"""MCAD-KD's training step with the parts of basicsr 1.4.2, in the order of its SRGANModel: float32, contiguous.

The networks and the losses of images are basicsr's. What it has not is written as the paper has it: projection
heads (eq. 1), InfoNCE over the batch (eq. 2) and over patches (eq. 4) with the hardest half of the negatives.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
import time
from typing import Any

import numpy as np
import torch
from serving import memory
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode


class Head(nn.Module):
    """Convolutions with ReLU, global average, linear layer, L2 normalisation."""

    def __init__(self, channels: list[int], dimension: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, 1, 1), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], dimension)]
        self.encoder = nn.Sequential(*layers)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, dimension) of norm 1."""
        return F.normalize(self.encoder(image), dim=1)


class PlainStep:
    """Networks, losses and optimizers of one pair, and a random batch.

    Args:
        options: a whole options file as plain dicts.
        batch: images.
        lr_size: side of the LR images.
        threads: that PyTorch may use.
    """

    def __init__(self, options: dict[str, Any], batch: int, lr_size: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.options, scale = options, options["scale"]
        archs, losses = (importlib.import_module(f"basicsr.{name}") for name in ("archs", "losses"))
        generator = torch.Generator().manual_seed(0)
        self.lq = torch.rand(batch, 3, lr_size, lr_size, generator=generator)
        self.gt = torch.rand(batch, 3, lr_size * scale, lr_size * scale, generator=generator)
        self.memory_before = memory()["now"]
        torch.manual_seed(0)
        train = options["train"]
        terms = train["distill"]
        self.student = _network(archs, options["network_g"]).train()
        self.teacher = _network(archs, options["network_t"]).eval()
        self.discriminator = _network(archs, options["network_d"]).train()
        for parameter in self.teacher.parameters():
            parameter.requires_grad = False
        self.pixel_loss, self.response_loss, self.gan_loss = (
            losses.build_loss(dict(block))
            for block in (train["pixel_opt"], terms["response"]["criterion"], train["adversarial_opt"])
        )
        self.contrast = terms["contrastive"]
        size = self.contrast.get("embed_dim", 256)
        self.image_head = Head([3, size // 2], size)
        self.patch_head = Head([3, size // 4, size // 2], size)
        self.log_tau = nn.Parameter(torch.tensor(math.log(self.contrast["tau"])))
        heads = [*self.image_head.parameters(), *self.patch_head.parameters(), self.log_tau]
        self.optimizer_g = _optimizer(train["optim_g"], [*self.student.parameters(), *heads])
        self.optimizer_d = _optimizer(train["optim_d"], self.discriminator.parameters())
        self.positions: np.ndarray | None = None
        self.rng = np.random.default_rng(0)

    def run(self) -> float:
        """A step; returns the seconds it took."""
        started = time.perf_counter()
        self.optimize_parameters()
        return time.perf_counter() - started

    def peak_memory(self, steps: int) -> int:
        """Bytes that networks and so many steps took at most."""
        for _ in range(steps):
            self.run()
        return memory()["peak"] - self.memory_before

    def flops(self) -> int:
        """Floating point operations of a step, two for a multiply-add."""
        with FlopCounterMode(display=False) as counter:
            self.optimize_parameters()
        return int(counter.get_total_flops())

    def losses_from(self, path: str) -> list[dict[str, float]]:
        """The losses of steps that begin with the weights, batch and places of crops in a file."""
        content = torch.load(path, weights_only=True)
        self.student.load_state_dict(content["student"])
        self.teacher.load_state_dict(content["teacher"])
        self.discriminator.load_state_dict(content["discriminator"])
        self.image_head.load_state_dict(content["image_head"])
        self.patch_head.load_state_dict(content["patch_head"])
        self.lq, self.gt = content["lq"], content["gt"]
        self.positions = content["positions"].numpy()
        return [self.optimize_parameters() for _ in range(content["steps"])]

    def optimize_parameters(self) -> dict[str, float]:
        """What SRGANModel does in an iteration, with a teacher; returns the losses for the log."""
        for parameter in self.discriminator.parameters():
            parameter.requires_grad = False
        self.optimizer_g.zero_grad()
        output = self.student(self.lq)
        with torch.no_grad():
            taught = self.teacher(self.lq)
        pixel, response = self.pixel_loss(output, self.gt), self.response_loss(output, taught)
        image, patch = self._contrastive(output, taught)
        guidance = self.gan_loss(self.discriminator(output), True, is_disc=False)
        weight = self.contrast["loss_weight"]
        contrastive = weight * (self.contrast["image_weight"] * image + self.contrast["patch_weight"] * patch)
        total = pixel + response + contrastive + guidance
        total.backward()
        self.optimizer_g.step()

        for parameter in self.discriminator.parameters():
            parameter.requires_grad = True
        self.optimizer_d.zero_grad()
        real = self.discriminator(self.gt)
        d_real = self.gan_loss(real, True, is_disc=True)
        d_real.backward()
        fake = self.discriminator(output.detach())
        d_fake = self.gan_loss(fake, False, is_disc=True)
        d_fake.backward()
        self.optimizer_d.step()
        parts = {
            "l_pix": pixel / self.pixel_loss.loss_weight,
            "l_resp": response / self.response_loss.loss_weight,
            "l_img": image,
            "l_patch": patch,
            "l_adv": guidance / self.gan_loss.loss_weight,
            "l_total": total,
            "l_d_real": d_real,
            "l_d_fake": d_fake,
            "out_d_real": real.mean(),
            "out_d_fake": fake.mean(),
        }
        return {name: part.item() for name, part in parts.items()}

    def _contrastive(self, output: torch.Tensor, taught: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tau, count = self.log_tau.exp(), self.contrast["num_patches"]
        image = _info_nce(self.image_head(output) @ self.image_head(taught).T, tau).mean()
        positions = self.positions if self.positions is not None else self._draw(output)
        queries, keys = (self.patch_head(self._crops(images, positions)) for images in (output, taught))
        per_image = (len(output), count, -1)
        patch = _info_nce(queries.view(per_image) @ keys.view(per_image).transpose(1, 2), tau).mean()
        return image, patch

    def _draw(self, output: torch.Tensor) -> np.ndarray:
        limit = output.shape[-1] - self.contrast["patch_size"] + 1
        return self.rng.integers(0, limit, size=(len(output), self.contrast["num_patches"], 2))

    def _crops(self, images: torch.Tensor, positions: np.ndarray) -> torch.Tensor:
        size = self.contrast["patch_size"]
        crops = [
            image[:, top : top + size, left : left + size]
            for image, corners in zip(images, positions, strict=True)
            for top, left in corners
        ]
        return torch.stack(crops)


def _info_nce(similarity: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """Losses of queries (..., Q) against keys (..., Q, Q) of which each has its own for a positive.

    In the denominator stand the positive and the more similar half of the others, at least one.
    """
    logits = similarity / tau
    positives = torch.diagonal(logits, dim1=-2, dim2=-1).unsqueeze(-1)
    own = torch.eye(logits.shape[-1], dtype=torch.bool)
    others = logits.masked_fill(own, -torch.inf)
    hardest = others.topk(max(1, (logits.shape[-1] - 1) // 2), dim=-1).values
    return torch.logsumexp(torch.cat([positives, hardest], dim=-1), dim=-1) - positives.squeeze(-1)


def _network(archs: Any, block: dict[str, Any]) -> nn.Module:
    """A network of basicsr's from an options block, without what its constructor does not know."""
    registry = importlib.import_module("basicsr.utils.registry").ARCH_REGISTRY
    known = inspect.signature(registry.get(block["type"]).__init__).parameters
    network: nn.Module = archs.build_network({key: value for key, value in block.items() if key in {"type", *known}})
    return network


def _optimizer(block: dict[str, Any], parameters: Any) -> torch.optim.Optimizer:
    arguments = {key: value for key, value in block.items() if key != "type"}
    optimizer: torch.optim.Optimizer = getattr(torch.optim, block["type"])(parameters, **arguments)
    return optimizer
