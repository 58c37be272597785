"""VGG (Simonyan and Zisserman, ICLR 2015) as an extractor of features."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from basicsr.archs.arch_util import fill_at_random, in_colour
from basicsr.files.atomic_files import sha256_of
from basicsr.files.torch_files import check_not_all_zero, check_weights, load_tensors
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.registry import Problem, unknown_key

WEIGHTS_FOLDER = Path("experiments/pretrained_models")
RANDOM_WEIGHTS = "random"

_CHANNELS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
VGG_TYPES = tuple(name + ending for name in _CONVOLUTIONS for ending in ("", "_bn"))


class VGGFeatureExtractor(nn.Module):
    """Layers of a VGG trained on ImageNet, up to the deepest that is asked for; in no registry.

    Layers are called as in BasicSR: conv1_1, (bn1_1,) relu1_1, conv1_2, ..., pool1, conv2_1 and so on.

    Args:
        layer_name_list: the layers whose output to return.
        vgg_type: 'vgg11', 'vgg13', 'vgg16', 'vgg19', or one of these with '_bn'.
        use_input_norm: normalise with ImageNet's mean and deviation.
        range_norm: bring images from [-1, 1] to [0, 1] first.
        requires_grad: whether its weights may be trained. If not, it stays in eval whatever `train()` says.
        remove_pooling: leave the pooling layers out.
        pooling_stride: of the pooling layers.
        vgg_weights: file with torchvision's weights of this VGG. None: `<vgg_type>-<hash>.pth` in
            `experiments/pretrained_models`, else torchvision's download. 'random': fixed untrained weights, for tests.

    Raises:
        OptionsError: there is no such VGG or layer.
        CheckpointError: the weights are missing, damaged, or of another network.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        *,
        layer_name_list: Sequence[str],
        vgg_type: str = "vgg19",
        use_input_norm: bool = True,
        range_norm: bool = False,
        requires_grad: bool = False,
        remove_pooling: bool = False,
        pooling_stride: int = 2,
        vgg_weights: str | None = None,
    ) -> None:
        super().__init__()
        if vgg_type not in VGG_TYPES:
            raise OptionsError(f"vgg_type is '{vgg_type}'; allowed: {', '.join(VGG_TYPES)}")
        names = layer_names(vgg_type)
        offered = [name for name in names if not (remove_pooling and "pool" in name)]
        unknown = [name for name in layer_name_list if name not in offered]
        if unknown or not layer_name_list:
            given = f"has no layer {', '.join(unknown)}" if unknown else "is asked for no layer"
            raise OptionsError(f"{vgg_type} {given}; there are: {', '.join(offered)}")
        self.layer_name_list, self._trainable = list(layer_name_list), requires_grad
        self.use_input_norm, self.range_norm = use_input_norm, range_norm
        names = names[: 1 + max(names.index(name) for name in layer_name_list)]
        # On 'meta' the layers draw no random numbers and take no memory before the weights come.
        with torch.device("meta"):
            features = nn.Sequential(*_layers(names, set(layer_name_list), pooling_stride))
        if vgg_weights == RANDOM_WEIGHTS:
            fill_at_random(features, "relu")
        else:
            _load(features, vgg_type, vgg_weights)
        self.vgg_net = nn.Sequential()
        for name, layer in zip(names, features, strict=True):
            if not (remove_pooling and "pool" in name):
                self.vgg_net.add_module(name, layer)
        self.requires_grad_(requires_grad).train(requires_grad)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> VGGFeatureExtractor:
        """As in `nn.Module`, but a frozen extractor stays in eval."""
        return super().train(mode and self._trainable)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The features by layer of images (B, 3 or 1, H, W), RGB or gray in [0, 1] ([-1, 1] with `range_norm`)."""
        x = in_colour(x)
        if self.range_norm:
            x = (x + 1) / 2
        if self.use_input_norm:
            x = (x - self.mean) / self.std
        features = {}
        for name, layer in self.vgg_net.named_children():
            x = layer(x)
            if name in self.layer_name_list:
                features[name] = x
        return features


def layer_names(vgg_type: str) -> list[str]:
    """The names of a VGG's layers, in the order of torchvision's `features`."""
    kinds = ("conv", "bn", "relu") if vgg_type.endswith("_bn") else ("conv", "relu")
    names = []
    for block, convolutions in enumerate(_CONVOLUTIONS[vgg_type.removesuffix("_bn")], start=1):
        names += [f"{kind}{block}_{index}" for index in range(1, convolutions + 1) for kind in kinds]
        names.append(f"pool{block}")
    return names


def layer_problems(layers: Iterable[str], vgg_type: str = "vgg19") -> Iterator[Problem]:
    """What is wrong with the options `layer_weights` and `vgg_type` of losses on VGG features."""
    if vgg_type not in VGG_TYPES:
        yield Problem(("vgg_type",), f"no VGG is called '{vgg_type}'", vgg_type, VGG_TYPES)
        return
    names = layer_names(vgg_type)
    yield from (unknown_key(("layer_weights", layer), names) for layer in layers if layer not in names)


def local_weights(vgg_type: str) -> Path | None:
    """The file in `experiments/pretrained_models` that is taken where none is named."""
    return next(iter(sorted(WEIGHTS_FOLDER.glob(f"{vgg_type}-*.pth"))), None)


def _layers(names: list[str], keep: set[str], pooling_stride: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels, previous = 3, ""
    for name in names:
        width = _CHANNELS[int(re.findall(r"\d", name)[0]) - 1]
        if name.startswith("conv"):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            channels = width
        elif name.startswith("bn"):
            layers.append(nn.BatchNorm2d(width))
        elif name.startswith("relu"):
            # In place it would overwrite the features just taken.
            layers.append(nn.ReLU(inplace=previous not in keep))
        else:
            layers.append(nn.MaxPool2d(2, stride=pooling_stride))
        previous = name
    return layers


def _load(features: nn.Sequential, vgg_type: str, vgg_weights: str | None) -> None:
    path = Path(vgg_weights) if vgg_weights else local_weights(vgg_type)
    source = path or f"torchvision's {vgg_type}"
    if path is None:
        state = _download(vgg_type)
    else:
        promised = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
        if promised and path.is_file() and not sha256_of(path).startswith(promised[1]):
            raise CheckpointError(f"{path} is damaged: its SHA-256 does not begin with {promised[1]}; fetch it again")
        state = load_tensors(path, checksums=promised is None)
    wanted = {f"features.{key}": value for key, value in features.state_dict().items()}
    weights: dict[str, torch.Tensor] = {}
    for key, expected in wanted.items():
        value = state.get(key) if isinstance(state, Mapping) else None
        if value is None and key.endswith("num_batches_tracked"):
            value = torch.tensor(0)  # old files lack the counter, which evaluation does not read
        if not isinstance(value, torch.Tensor) or value.shape != expected.shape:
            given = tuple(value.shape) if isinstance(value, torch.Tensor) else "nothing"
            raise CheckpointError(
                f"{source} does not hold torchvision's weights of {vgg_type}: {key} is {given}, not"
                f" {tuple(expected.shape)}; give the file of {vgg_type}, or the vgg_type of the file"
            )
        weights[key] = value
    check_weights(weights, source, wanted)
    check_not_all_zero(weights, source)
    weights = {key.removeprefix("features."): value.to(wanted[key].dtype) for key, value in weights.items()}
    features.load_state_dict(weights, assign=True)


def _download(vgg_type: str) -> object:
    from basicsr.utils.torchvision_import import import_torchvision

    torchvision = import_torchvision()
    weights = torchvision.models.get_model_weights(vgg_type).DEFAULT
    try:
        return weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"the weights of {vgg_type} are not in {WEIGHTS_FOLDER} and could not be fetched ({reason});"
            f" download {weights.url} elsewhere and put it there, or name the file in vgg_weights"
        ) from error
