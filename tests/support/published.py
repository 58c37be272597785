"""Networks as their authors published them, written from the papers: the reference for what converted weights give.

Only the names of modules are the published ones, since they are the layouts under test.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from basicsr.utils.torchvision_import import import_torchvision

DIV2K = (0.4488, 0.4371, 0.4040)


def conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


class Block(nn.Module):
    """x + scale * body(x)."""

    def __init__(self, *layers: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.body(x)


class ChannelGate(nn.Module):
    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        less = width // reduction
        self.conv_du = nn.Sequential(nn.Conv2d(width, less, 1), nn.ReLU(), nn.Conv2d(less, width, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_du(x.mean((2, 3), keepdim=True))


class Published(nn.Module):
    """Head, body and tail, between two shifts of the mean colour; images in [0, rgb_range]."""

    def __init__(self, blocks: list[nn.Module], width: int, scale: int, rgb_range: float, mean, std, colours=3) -> None:
        super().__init__()
        self.rgb_range = rgb_range
        if mean is not None:
            self.sub_mean, self.add_mean = nn.Conv2d(colours, colours, 1), nn.Conv2d(colours, colours, 1)
            deviation = torch.tensor(std)
            for shift, sign in ((self.sub_mean, -1), (self.add_mean, 1)):
                shift.weight.data = (torch.eye(colours) / deviation[:, None])[:, :, None, None]
                shift.bias.data = sign * rgb_range * torch.tensor(mean) / deviation
        steps = {1: [], 2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}[scale]
        upsampler = [layer for s in steps for layer in (conv(width, s * s * width), nn.PixelShuffle(s))]
        self.head = nn.Sequential(conv(colours, width))
        self.body = nn.Sequential(*blocks, conv(width, width))
        self.tail = nn.Sequential(nn.Sequential(*upsampler), conv(width, colours))

    def forward(self, x: Tensor) -> Tensor:
        """Images in [0, 1], as we have them, through the network on [0, rgb_range]."""
        x = x * self.rgb_range
        x = self.sub_mean(x) if hasattr(self, "sub_mean") else x
        x = self.head(x)
        x = self.tail(x + self.body(x))
        x = self.add_mean(x) if hasattr(self, "add_mean") else x
        return x / self.rgb_range


def edsr(scale=4, width=8, blocks=2, res_scale=1.0, rgb_range=255.0, mean=DIV2K, std=(1.0, 1.0, 1.0), colours=3):
    """EDSR in EDSR-PyTorch's layout, with random weights."""
    layers = [Block(conv(width, width), nn.ReLU(), conv(width, width), scale=res_scale) for _ in range(blocks)]
    return Published(layers, width, scale, rgb_range, mean, std, colours).eval().requires_grad_(False)


def rcan(scale=4, width=8, groups=2, blocks=2, reduction=4, rgb_range=255.0, mean=DIV2K, std=(1.0, 1.0, 1.0)):
    """RCAN in its authors' layout, with random weights."""

    def block() -> Block:
        return Block(conv(width, width), nn.ReLU(), conv(width, width), ChannelGate(width, reduction))

    layers = [Block(*(block() for _ in range(blocks)), conv(width, width)) for _ in range(groups)]
    return Published(layers, width, scale, rgb_range, mean, std).eval().requires_grad_(False)


def spandrel_architecture(module: str):
    """A module of spandrel.architectures, such as 'SwinIR'."""
    import importlib

    import_torchvision()
    return importlib.import_module(f"spandrel.architectures.{module}")


def swinir(upsampler="pixelshuffle", scale=2, window=4, img_size=16, colours=3, **options):
    """SwinIR as spandrel has its authors' code, with random weights."""
    options = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3], "mlp_ratio": 2.0, **options}
    network = spandrel_architecture("SwinIR").SwinIR(
        img_size=img_size,
        in_chans=colours,
        window_size=window,
        upscale=scale,
        upsampler=upsampler,
        **options,
    )
    for parameter in network.parameters():  # the initial values hide mistakes: biases are 0, norms are 1
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network.eval().requires_grad_(False)
