"""Prints how strongly, and in which direction, each part of a training's loss pulls at the student's weights.

    python scripts/loss_gradients.py -opt options/train/mcadkd_edsr_x4.yml [--batches 8] [--force_yml KEY=VALUE ...]

A part's value says little about who leads: what the optimizer sees is its gradient. The student is that of the
options, untrained or with `path: pretrain_network_g`, and the heads beside it are untrained; with `path: resume_state`
student, heads and discriminator are those of a checkpoint, and the batches are those that come next. All is computed
in float32 and in one process: losses among images of several processes are those of one. Nothing is trained or written.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.engine.process.command import quiet_start, run_command
from basicsr.utils.process_settings import shorten_spinning

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds
    shorten_spinning()

import torch
from torch.nn import functional as F

from basicsr.config.load import load_options
from basicsr.config.schema import Options
from basicsr.data import build_train_loader
from basicsr.data.batch import Batch
from basicsr.distill.base import LossTerm
from basicsr.engine.process.distributed import distributed
from basicsr.engine.resuming import find_checkpoint
from basicsr.engine.training_run import TrainingRun
from basicsr.models import recognise_networks
from basicsr.utils.errors import NonFiniteError, OptionsError
from basicsr.utils.randomness import seed_everything

IN_FLOAT32 = ("amp=none", "amp_teacher=none")


@dataclass
class Pull:
    """One part's gradients on the student's weights, over several batches.

    Attributes:
        values: of the part, unweighted, by batch.
        norms: of the weighted part's gradient.
        cosines: of the gradient with that of the first part, where both are there.
        direction_sum: of the gradients, each of norm 1; None before the first that is not zero.
        count: how many gradients were not zero.
    """

    values: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    direction_sum: torch.Tensor | None = None
    count: int = 0

    def add(self, value: float, gradient: torch.Tensor, first: torch.Tensor) -> None:
        """Takes one batch in."""
        norm = gradient.norm().item()
        self.values.append(value)
        self.norms.append(norm)
        if norm > 0:
            direction = gradient / norm
            self.direction_sum = direction if self.direction_sum is None else self.direction_sum + direction
            self.count += 1
            if first.norm() > 0:
                self.cosines.append(F.cosine_similarity(gradient, first, dim=0).item())

    @property
    def agreement(self) -> float | None:
        """Mean cosine between the gradients of two batches; None of fewer than two."""
        if self.direction_sum is None or self.count < 2:
            return None
        return (self.direction_sum.square().sum().item() - self.count) / (self.count * (self.count - 1))


def measure(options: Options, batches: int) -> dict[str, Pull]:
    """The pull of each part, by its name in the log; the first is `l_pix` where there is one.

    Raises:
        UserError: one of its kinds, as train.py does; OptionsError also for a method that trains the student's weights
            in its place.
    """
    params = options.dist_params
    with distributed("none", options.num_gpu, params.backend, params.port) as rank_info:
        checkpoint, _ = find_checkpoint(options, rank_info, False)
        options, recognised = recognise_networks(options)
        run = TrainingRun(options, rank_info, checkpoint)
        for remark in filter(None, (rank_info.remark, *recognised, *run.remarks)):
            print(remark, file=sys.stderr)
        owners = [type(term).__name__ for term in run.terms.children() if cast(LossTerm, term).replaces_student]
        if owners:
            raise OptionsError(
                f"{owners[0]} trains the student's weights in its place, among others: there is no gradient of the"
                " student alone; measure without this method"
            )
        loader = build_train_loader(
            options.datasets["train"],  # of further sets the losses may be others
            seed=options.manual_seed,
            rank=0,
            world_size=1,
            start_iteration=run.iteration,
            total_iterations=run.iteration + batches,
            accumulate=1,
            on_gpu=False,
        )
        pulls: dict[str, Pull] = {}
        run.model.train()
        for number, (batch,) in enumerate(loader):
            _add_batch(pulls, run, batch.to(rank_info.device, options.channels_last), run.iteration + 1 + number)
        return pulls


def _add_batch(pulls: dict[str, Pull], run: TrainingRun, batch: Batch, iteration: int) -> None:
    seed_everything(run.options.manual_seed, iteration, run.rank_info.rank)
    output = run.model(batch, iteration)
    values, weighted = dict(output.parts), dict(output.weighted)
    if run.adversary is not None and batch.gt is not None:
        judged, gradient = run.adversary.play(batch.gt, output.sr, guided=lambda loss: loss)
        values["l_adv"], weighted["l_adv"] = judged["l_adv"], (output.sr * gradient).sum()
    weights = list(run.network.parameters())
    first = None
    for name, part in sorted(weighted.items(), key=lambda entry: entry[0] != "l_pix"):
        gradient = _gradient(part, weights)
        if not torch.isfinite(gradient).all():
            raise NonFiniteError(
                f"{name} = {values[name].item():.4g}: its gradient is not finite; batch: {batch.lq_paths}"
            )
        first = gradient if first is None else first
        pulls.setdefault(name, Pull()).add(values[name].item(), gradient, first)


def _gradient(part: torch.Tensor, weights: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """Of `part` by all weights, float32 in one row; zeros by those that it does not depend on."""
    if not part.requires_grad:
        return torch.zeros(sum(weight.numel() for weight in weights), device=part.device)
    found = torch.autograd.grad(part, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.float().flatten() for gradient in found])


def table(pulls: dict[str, Pull]) -> str:
    """A line for each part: means over the batches."""
    name_of_first, first = next(iter(pulls.items()))
    rows = [("part", "value", "gradient", f"to {name_of_first}", f"cosine to {name_of_first}", "cosine of batches")]
    for name, pull in pulls.items():
        ratios = [own / other for own, other in zip(pull.norms, first.norms, strict=True) if other > 0]
        rows.append(
            (
                name,
                f"{fmean(pull.values):.4g}",
                f"{fmean(pull.norms):.4g}",
                f"{fmean(ratios):.3g}" if ratios else "-",
                f"{fmean(pull.cosines):.2f}" if pull.cosines else "-",
                f"{pull.agreement:.2f}" if pull.agreement is not None else "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(line) for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="options file of a training")
    parser.add_argument("--batches", type=int, default=8, help="how many batches to look at (8)")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="set options")
    arguments = parser.parse_args(argv)
    if arguments.batches < 1:
        raise OptionsError(f"--batches is {arguments.batches}, allowed: 1 and more")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise OptionsError("loss_gradients.py runs in one process; start it without torchrun")
    options = load_options(arguments.opt, training=True, overrides=[*arguments.force_yml, *IN_FLOAT32])
    print(table(measure(options, arguments.batches)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
