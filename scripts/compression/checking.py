"""What is checked before a run begins: teacher, images, networks, targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from basicsr.config.load import load_options, no_warning
from basicsr.config.schema import thaw
from basicsr.data import build_eval_dataset
from basicsr.engine.process.distributed import RankInfo
from basicsr.engine.startup_checks import check_fit
from basicsr.engine.training_run import TrainingRun
from basicsr.models import recognise_networks
from basicsr.utils.errors import DataError, OptionsError, UserError
from basicsr.weights.recognise import network_for
from compression.candidates import Candidate
from compression.figures import images_of
from compression.files import check_targets
from compression.options import Settings
from compression.stages import Stages


def check_all(settings: Settings, candidates: Sequence[Candidate], folder: Path) -> tuple[nn.Module, list[str]]:
    """Checks everything that can be known before any work; returns the teacher in eval mode, and remarks.

    Raises:
        UserError: one of its kinds: a target that is not there or not installed, a teacher of another scale, images
            that are not there, networks, losses and images that do not fit each other.
    """
    options, compress = settings.options, settings.compress
    check_targets(compress)
    file = options.path.pretrain_network_t
    assert file is not None
    teacher, remark = network_for(
        options.network_t,
        file,
        param_key=options.path.param_key_t,
        strict=options.path.strict_load_t,
        scale=options.scale,
    )
    for block in settings.judging.datasets_of("val", "test").values():
        dataset = build_eval_dataset(block)
        if len(dataset) and "gt" not in dataset[0]:
            raise DataError(f"{block.name} has no HR images; students are judged against HR images: give dataroot_gt")
    for block in options.datasets_of("train").values():
        images_of(block)
    remarks = [remark] if remark else []
    stages = Stages(settings, folder, {}, {"amp": "none", "amp_teacher": "none"})
    for candidate in _first_of_each(candidates).values():
        content = stages.search(candidate, 0)
        if compress.cache:
            _check_cacheable(content)
        try:
            loaded = load_options(content, training=True, warn=no_warning)
            run = TrainingRun(recognise_networks(loaded)[0], RankInfo(torch.device("cpu")), None)
            check_fit(run)
        except UserError as error:
            error.extend(before=f"{candidate.label}: ")
            raise
    return teacher.eval().requires_grad_(False), remarks


def _first_of_each(candidates: Sequence[Candidate]) -> Mapping[str, Candidate]:
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        found.setdefault(candidate.family, candidate)
    return found


def _check_cacheable(content: Mapping[str, object]) -> None:
    """Raises OptionsError where a loss needs more of the teacher than its outputs."""
    datasets = thaw(content["datasets"])
    for key, block in datasets.items():
        if key.partition("_")[0] == "train":
            block.setdefault("teacher_cache", "anywhere")
    try:
        load_options({**content, "datasets": datasets}, training=True, paths=False, warn=no_warning)
    except OptionsError as error:
        line = str(error).splitlines()[1].removeprefix("options: ")
        raise OptionsError(f"{line}; or set compress: cache: false, and the teacher runs at each step") from None
