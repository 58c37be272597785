"""What several networks share: the interface of staged networks, frozen networks, BasicSR's blocks, padding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import Conflict

MOST_BLOCKS = 2000
Network = TypeVar("Network", bound=nn.Module)


class StagedNetwork(nn.Module):
    """A network whose `forward(x)` is `reconstruct(run_stages(stem(x)))`.

    Each stage of the body takes features (B, C, H, W) and returns features of that shape, so that features may leave
    and enter after any stage. The interface adds no weights.

    Attributes:
        stages_name: name of the module list or sequence that holds the stages.
        slices_are_networks: whether leading slices of the weights are a narrower network of the class.
    """

    stages_name: ClassVar[str] = "body"
    slices_are_networks: ClassVar[bool] = False

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Module paths of the stages, in order, such as `body.0`."""
        stages = self.get_submodule(self.stages_name)
        return tuple(f"{self.stages_name}.{name}" for name, _ in stages.named_children())

    @abstractmethod
    def stem(self, x: Tensor) -> tuple[Tensor, Any]:
        """From images (B, 3, H, W) in [0, 1] to the first features, and whatever the later parts need of the input."""

    def run_stages(self, features: Tensor, kept: Any, first: int = 0, last: int | None = None) -> Tensor:
        """Runs the stages from number `first` to before number `last`, by default all; `kept` is the stem's."""
        body = self.get_submodule(self.stages_name)
        if first == 0 and last is None:
            return body(features)  # as a whole, for hooks on the body
        for stage in list(body.children())[first:last]:
            features = stage(features)
        return features

    @abstractmethod
    def reconstruct(self, features: Tensor, kept: Any) -> Tensor:
        """From the last stage's features, and what the stem kept, to images (B, 3, sH, sW), not clipped."""

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges (B, C, H, W) in [0, 1] to (B, C, upscale H, upscale W), not clipped."""
        features, kept = self.stem(x)
        return self.reconstruct(self.run_stages(features, kept), kept)


class Frozen(nn.Module, Generic[Network]):
    """Holds a network that is frozen for good and belongs to no checkpoint, such as a loss's VGG.

    Its weights get no gradients, its input does. It stays in eval mode. No optimizer, checkpoint or exchange among
    processes sees it, for it is in neither `parameters()`, `state_dict()` nor `children()`; yet it follows to another
    device, precision or memory format. The network itself, not a copy, is frozen.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        # In a tuple it is no submodule: hundreds of megabytes stay out of every checkpoint.
        self._hidden = (network.requires_grad_(False).eval(),)

    @property
    def network(self) -> Network:
        """The frozen network."""
        return self._hidden[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network returns."""
        return self.network(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen[Network]:
        self.network._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self


def check_images_for(method: str, network: str, shape: Sequence[int], least: int) -> None:
    """Raises OptionsError unless images (C, H, W) are gray or RGB and `least` pixels a side, for a method's network."""
    channels, *size = shape
    if channels not in (1, 3) or min(size) < least:
        raise OptionsError(
            f"{method}: the {network} needs gray or colour images of {least}x{least} at least, the output has"
            f" {channels} channels and {size[0]}x{size[1]} pixels; raise gt_size or leave the method out"
        )


@torch.no_grad()
def default_init_weights(
    module_list: nn.Module | list[nn.Module], scale: float = 1, bias_fill: float = 0, **kwargs: Any
) -> None:
    """Fills convolutions and linear layers by Kaiming's normal rule times `scale`, batch norms with ones.

    `bias_fill` is the value of every bias; `kwargs` go to `torch.nn.init.kaiming_normal_`.
    """
    modules = module_list if isinstance(module_list, list) else [module_list]
    for module in (inner for outer in modules for inner in outer.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, **kwargs)
            module.weight.mul_(scale)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            module.bias.fill_(bias_fill)


def fill_at_random(network: nn.Module, nonlinearity: Literal["linear", "relu"]) -> None:
    """Initial weights for a network on 'meta', always the same ones; Kaiming's rule for `nonlinearity`."""
    generator = torch.Generator().manual_seed(0)
    network.to_empty(device="cpu")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity=nonlinearity, generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, (nn.GroupNorm, nn.BatchNorm2d)):
            layer.reset_parameters()
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=0.5, generator=generator)


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Fills `tensor` in place from the normal distribution cut off at the values `a` and `b`."""
    return nn.init.trunc_normal_(tensor, mean, std, a, b)


def to_2tuple(x: Any) -> Any:
    """Returns `x` itself if it is iterable, else `(x, x)`."""
    return x if isinstance(x, Iterable) else (x, x)


def pixel_unshuffle(x: Tensor, scale: int) -> Tensor:
    """Folds `scale` by `scale` pixels into channels: (B, C, scale H, scale W) to (B, C scale^2, H, W)."""
    return F.pixel_unshuffle(x, scale)


def in_colour(images: Tensor) -> Tensor:
    """Gray images (B, 1, H, W) as three equal channels, for networks that know colour images only; others as given."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extends (B, C, H, W) at the bottom and at the right by reflection, repeated if need be; one row is replicated."""
    height, width = (-(-size // multiple) * multiple for size in x.shape[-2:])
    x = x.expand(-1, -1, height, -1) if x.shape[-2] == 1 else x
    x = x.expand(-1, -1, -1, width) if x.shape[-1] == 1 else x
    while x.shape[-2:] != (height, width):
        # PyTorch reflects at most all but the edge.
        right = min(width - x.shape[-1], x.shape[-1] - 1)
        bottom = min(height - x.shape[-2], x.shape[-2] - 1)
        x = F.pad(x, (0, right, 0, bottom), "reflect")
    return x


def make_layer(basic_block: Callable[..., nn.Module], num_basic_block: int, **kwarg: Any) -> nn.Sequential:
    """Stacks `num_basic_block` blocks, each built as `basic_block(**kwarg)`."""
    return nn.Sequential(*(basic_block(**kwarg) for _ in range(num_basic_block)))


class ResidualBlockNoBN(nn.Module):
    """EDSR's block without batch norm: x + res_scale * conv3x3(relu(conv3x3(x))), on (B, `num_feat`, H, W).

    Weights begin by `default_init_weights` at scale 0.1, or with `pytorch_init` as PyTorch's.
    """

    def __init__(self, num_feat: int = 64, res_scale: float = 1, pytorch_init: bool = False) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.relu = nn.ReLU()
        if not pytorch_init:
            default_init_weights([self.conv1, self.conv2], 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.conv2(self.relu(self.conv1(x))), alpha=self.res_scale)


class Upsample(nn.Sequential):
    """Sub-pixel upsampling by convolutions and pixel shuffles: (B, C, H, W) to (B, C, scale H, scale W).

    `scale` is a power of two (1 is the identity) or 3, others raise OptionsError; `num_feat` is C.
    """

    def __init__(self, scale: int, num_feat: int) -> None:
        for key, message in upscale_conflicts(scale):
            raise OptionsError(f"{key}: {message}")
        steps = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
        layers: list[nn.Module] = []
        for step in steps:
            layers += [nn.Conv2d(num_feat, step**2 * num_feat, 3, 1, 1), nn.PixelShuffle(step)]
        super().__init__(*layers)


def upscale_conflicts(upscale: int) -> Iterator[Conflict]:
    """Refuses a factor that `Upsample` does not have."""
    if upscale != 3 and (upscale < 1 or upscale & (upscale - 1)):
        yield "upscale", f"{upscale} is not supported: give a power of two or 3"


def block_conflicts(key: str, blocks: int) -> Iterator[Conflict]:
    """Refuses more blocks than a network can be made of in any useful time."""
    if blocks > MOST_BLOCKS:
        yield key, f"makes {blocks} blocks in all, allowed: {MOST_BLOCKS}; lower it"


class ResidualTrunk(StagedNetwork):
    """A network on images without their mean colour: a convolution, a residual body, sub-pixel upsampling.

    Args:
        make_body: makes the body; called second, in BasicSR's order, in which initial weights are drawn.
        num_in_ch: channels of the input.
        num_out_ch: channels of the output, as many as of the input.
        num_feat: channels of the features.
        upscale: factor of enlargement, a power of two or 3.
        img_range: factor on the input, which is in [0, 1].
        rgb_mean: mean colour in [0, 1], one entry per channel; the default is DIV2K's.
    """

    mean: Tensor
    slices_are_networks = True

    def __init__(
        self,
        make_body: Callable[[], nn.Sequential],
        num_in_ch: int,
        num_out_ch: int,
        num_feat: int,
        upscale: int,
        img_range: float,
        rgb_mean: Sequence[float],
    ) -> None:
        super().__init__()
        self.img_range = img_range
        self.register_buffer("mean", torch.tensor(rgb_mean).view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.body = make_body()
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.upsample = Upsample(upscale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)

    @staticmethod
    def conflicts(upscale: int, rgb_mean: tuple[float, ...], num_in_ch: int, num_out_ch: int) -> Iterator[Conflict]:
        """Refuses a factor or a mean colour that does not fit."""
        yield from upscale_conflicts(upscale)
        if not len(rgb_mean) == num_in_ch == num_out_ch:
            channels = f"num_in_ch {num_in_ch} and num_out_ch {num_out_ch}"
            remedy = "give one per channel, and as many channels out as in"
            yield "rgb_mean", f"has {len(rgb_mean)} entries for {channels}: {remedy}"

    def stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `StagedNetwork`; what is kept are the first features."""
        shallow = self.conv_first((x - self.mean) * self.img_range)
        return shallow, shallow

    def reconstruct(self, features: Tensor, kept: Tensor) -> Tensor:
        # Not in place: a hook on conv_after_body must see its own output.
        x = self.conv_last(self.upsample(self.conv_after_body(features) + kept))
        return x / self.img_range + self.mean
