"""Assembling networks, losses and methods into models, from the options."""

from __future__ import annotations

import torch
from torch import nn

from basicsr.archs import build_network
from basicsr.archs.luma import ON_LUMA, LumaNetwork
from basicsr.config.component_blocks import is_auto
from basicsr.config.schema import FrozenMapping, Options
from basicsr.distill.base import LossTerm, Reconstruction
from basicsr.inference.trials import on_images_of
from basicsr.losses import build_loss
from basicsr.models.kd_model import Adversary, KDModel
from basicsr.utils.precision import Precision, keep_output_precise
from basicsr.utils.registry import METHOD_REGISTRY, declared
from basicsr.weights.recognise import network_for, recognised_block


def recognise_networks(options: Options) -> tuple[Options, list[str]]:
    """Replaces `network_g: {type: auto}` and `network_t: {type: auto}` by what their files hold; returns remarks too.

    Nothing is built. Networks of spandrel's, which no options describe, stay `auto`; so does a teacher whose outputs
    come from a cache. Raises CheckpointError where a file cannot be read, or is for another scale.
    """
    update: dict[str, FrozenMapping] = {}
    remarks: list[str] = []
    for label in ("g", "t") if options.model_type == "KDModel" else ("g",):
        path = getattr(options.path, f"pretrain_network_{label}")
        if not is_auto(getattr(options, f"network_{label}")) or (label == "t" and options.teacher_cache is not None):
            continue
        param_key = getattr(options.path, f"param_key_{label}")
        block, remark = recognised_block(path, param_key=param_key, scale=options.scale)
        if block is not None:
            update[f"network_{label}"] = FrozenMapping(block)
            remarks += [f"network_{label}: {remark}"] if remark else []
    return options.model_copy(update=update), remarks


def build_model(options: Options, device: torch.device) -> tuple[KDModel, list[str]]:
    """Builds the network to train, its terms, and for `model_type: KDModel` the teacher, unless its outputs are cached.

    `amp` must not be `auto` any more. The network to train is built first, so that from one seed it starts equal with
    and without a teacher. Returns the model on `device`, and remarks on what was loaded; raises OptionsError or
    CheckpointError where a block or a checkpoint does not fit.
    """
    network, loaded = load_network(options, "g", device)
    teacher, remarks = None, [loaded]
    terms: dict[str, LossTerm] = {
        name: Reconstruction(
            f"l_{name}", block, sharpened=options.percep_gt_usm if name == "percep" else options.l1_gt_usm
        )
        for name, block in options.train.loss_blocks.items()
    }
    if options.model_type == "KDModel" and options.teacher_cache is None:
        teacher, loaded = load_network(options, "t", device)
        remarks.append(loaded)
        teacher = on_images_of(network, teacher)
        remarks += [f"network_t: {ON_LUMA}"] if isinstance(teacher, LumaNetwork) else []
    for name, block in options.train.distill.items():
        terms[name] = METHOD_REGISTRY.build(block)
        terms[name].gt_needs = declared(terms[name], "gt_needs", block, "")
    precision = Precision.of(device, options.amp)
    teacher_precision = Precision.of(device, options.amp_teacher or options.amp)
    model = KDModel(network, teacher, terms, precision, teacher_precision, options.scale, options.manual_seed)
    remarks += [remark for term in terms.values() for remark in term.remarks]
    return model.to(device), [remark for remark in remarks if remark]


def build_networks(options: Options, device: torch.device) -> dict[str, nn.Module]:
    """The student `g` and, where the run has them, the teacher `t` and the discriminator `d`, as they will run.

    Their weights are random, but for networks that are recognised by them. Raises as `load_network`.
    """
    labels = ["g"]
    labels += ["t"] if options.model_type == "KDModel" and options.teacher_cache is None else []
    labels += ["d"] if options.train.adversarial_opt is not None else []
    networks = {}
    for label in labels:
        block = getattr(options, f"network_{label}")
        if is_auto(block):
            networks[label], _ = load_network(options, label, device)
        else:
            networks[label] = _placed(build_network(block), options, device)
    if "t" in networks:
        networks["t"] = on_images_of(networks["g"], networks["t"])
    return networks


def build_adversary(options: Options, device: torch.device, distributed: bool) -> tuple[Adversary | None, list[str]]:
    """Builds the discriminator and its loss, or returns None where the options have no adversarial loss."""
    block = options.train.adversarial_opt
    if block is None:
        return None, []
    discriminator, remark = load_network(options, "d", device)
    adversary = Adversary(
        discriminator,
        build_loss({key: value for key, value in block.items() if key != "loss_weight"}),
        float(block.get("loss_weight", 1.0)),
        Precision.of(device, options.amp),
        train=options.train.train_adversary,
        distributed=distributed,
    )
    return adversary, [remark] if remark else []


def load_network(options: Options, label: str, device: torch.device) -> tuple[nn.Module, str | None]:
    """Builds network_LABEL on `device` and loads its weights, if any are named; returns a remark for the log too.

    Raises OptionsError or CheckpointError where its block or its file does not fit.
    """
    block = getattr(options, f"network_{label}")
    assert block is not None, "the options' checks see to it that the networks needed are there"
    path = getattr(options.path, f"pretrain_network_{label}")
    if path is None:
        return _placed(build_network(block), options, device), None
    network, remark = network_for(
        block,
        path,
        param_key=getattr(options.path, f"param_key_{label}"),
        strict=getattr(options.path, f"strict_load_{label}"),
        scale=options.scale,
    )
    named = type(remark)(f"network_{label}: {remark}") if remark else f"Loaded network_{label} from {path}"
    return _placed(network, options, device), named


def _placed(network: nn.Module, options: Options, device: torch.device) -> nn.Module:
    keep_output_precise(network)
    network.to(device)
    if options.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
