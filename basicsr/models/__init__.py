"""Assembling networks, losses and methods into models, from the options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from basicsr.models.adversary import Adversary
    from basicsr.models.sr_model import SRModel
    from basicsr.utils.options_schema import Options


def load_from_options(network: nn.Module, options: Options, label: str) -> str | None:
    """Loads `path: pretrain_network_LABEL` into `network`, if it is set; returns what the log should say of it."""
    from basicsr.utils.weights import load_network

    path = getattr(options.path, f"pretrain_network_{label}")
    if path is None:
        return None
    remark = load_network(
        network,
        path,
        param_key=getattr(options.path, f"param_key_{label}"),
        strict=getattr(options.path, f"strict_load_{label}"),
    )
    return remark or f"Loaded network_{label} from {path}"


def build_model(options: Options, device: torch.device) -> tuple[SRModel, list[str]]:
    """Builds what `model_type` names: the network to train, its terms, and for KDModel the teacher.

    The network to train is built first, so that from one seed it starts equal with and without a teacher.

    Returns:
        The model on `device`, and remarks on what was loaded.

    Raises:
        OptionsError, CheckpointError: a block or a checkpoint does not fit.
    """
    from basicsr.distill.base import Reconstruction, Term
    from basicsr.models.kd_model import KDModel
    from basicsr.models.sr_model import SRModel
    from basicsr.utils.precision import Precision
    from basicsr.utils.registry import METHOD_REGISTRY

    network = _build_network(options.network_g)
    remarks = [load_from_options(network, options, "g")]
    terms: dict[str, Term] = {
        name: Reconstruction(f"l_{name}", block) for name, block in options.train.loss_blocks.items()
    }
    precision = Precision(device.type, options.amp)
    if options.model_type == "KDModel":
        teacher = _build_network(options.network_t)
        remarks.append(load_from_options(teacher, options, "t"))
        for name, block in options.train.method_blocks.items():
            terms[name] = METHOD_REGISTRY.build(block)
        teacher_precision = Precision(device.type, options.amp_teacher or options.amp)
        model: SRModel = KDModel(
            _placed(network, options, device),
            _placed(teacher, options, device),
            terms,
            precision,
            teacher_precision,
            options.scale,
        )
    else:
        model = SRModel(_placed(network, options, device), terms, precision, options.scale)
    return model.to(device), [remark for remark in remarks if remark]


def build_adversary(options: Options, device: torch.device, distributed: bool) -> tuple[Adversary | None, list[str]]:
    """Builds the discriminator and its loss, or returns None where the options have no adversarial loss."""
    from basicsr.losses import build_loss
    from basicsr.models.adversary import Adversary
    from basicsr.utils.precision import Precision

    block = options.train.adversarial
    if block is None:
        return None, []
    discriminator = _build_network(options.network_d)
    remark = load_from_options(discriminator, options, "d")
    adversary = Adversary(
        _placed(discriminator, options, device),
        build_loss({key: value for key, value in block.items() if key != "loss_weight"}),
        float(block.get("loss_weight", 1.0)),
        Precision(device.type, options.amp),
        train=options.train.train_adversary,
        distributed=distributed,
    )
    return adversary, [remark] if remark else []


def _build_network(block: Mapping[str, Any] | None) -> nn.Module:
    from basicsr.archs import build_network

    assert block is not None, "the options' checks see to it that the networks needed are there"
    return build_network(block)


def _placed(network: nn.Module, options: Options, device: torch.device) -> nn.Module:
    import torch

    from basicsr.utils.precision import keep_output_precise

    keep_output_precise(network)
    network.to(device)
    if options.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
