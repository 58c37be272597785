"""Parts of a network by patterns of names: what is frozen, and what has a learning rate or weight decay of its own.

A pattern is matched as by the shell (`*` any letters, dots included, `?` one, `[ab]` one of these) with whole names. It
means the parameters of that name, and all those of modules of that name: `body.1` is that block and not `body.10`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from basicsr.utils.errors import OptionsError
from basicsr.utils.text import nearest

_MOST_LISTED = 12


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern means: their own, or that of a module around them, matches."""
    matches = re.compile(fnmatch.translate(pattern)).match
    return [name for name in names if any(matches(whole) for whole in _with_modules(name))]


def selected(option: str, patterns: Sequence[str], names: Sequence[str], whose: str) -> set[str]:
    """The names that any of `patterns` means; raises OptionsError, by `option`'s name, where one means none of them."""
    found: set[str] = set()
    for pattern in patterns:
        of_pattern = matching(pattern, names)
        if not of_pattern:
            known = dict.fromkeys(module for name in names for module in _with_modules(name))
            depth = 2 if pattern.startswith(TERMS) else 1
            outermost = list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in names))
            listed = ", ".join(outermost[:_MOST_LISTED]) + (", ..." if len(outermost) > _MOST_LISTED else "")
            hint = nearest(pattern.removesuffix("*").removesuffix("."), known)
            raise OptionsError(
                f"{option}: '{pattern}' matches no module and no parameter of {whose}{hint}; it has"
                f" {listed or 'none that are trained'}"
            )
        found.update(of_pattern)
    return found


class FrozenParts:
    """What of a network is not trained: no gradients, no updates, no weight decay, no statistics that move.

    `patterns` name modules and parameters of `network`, `until` is the last iteration (from 1) for which they hold;
    None is for good. Normalisations that keep statistics stay in eval mode where a pattern names them or what they
    lie in, or where all of their own parameters are frozen. Raises OptionsError where a pattern means nothing, or all
    of them together everything that is trained.
    """

    def __init__(self, network: nn.Module, patterns: Sequence[str], until: int | None = None) -> None:
        trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        names = selected("train.freeze", patterns, list(trained), "network_g") if patterns else set()
        if names and len(names) == len(trained):
            raise OptionsError(
                f"train.freeze: {', '.join(patterns)} freeze all {len(trained)} parameters of network_g, so that it"
                " would learn nothing; leave a part of it to be trained"
            )
        self._weights = [trained[name] for name in trained if name in names]
        self._statistics: list[nn.Module] = []
        for path, module in network.named_modules():
            own = [path + "." + name for name, _ in module.named_parameters(recurse=False)]
            if isinstance(module, _NormBase) and module.track_running_stats and path:
                named = any(matching(pattern, [path]) for pattern in patterns)
                if named or (own and names.issuperset(own)):
                    self._statistics.append(module)
        self.until = until
        count = sum(weight.numel() for weight in self._weights)
        of_all = sum(weight.numel() for weight in trained.values())
        end = f", until iteration {until}" if until is not None else ""
        self.remark = f"frozen{end}: {count:,d} of {of_all:,d} parameters ({', '.join(patterns)})" if names else ""

    def holds(self, iteration: int) -> bool:
        """Whether they are frozen in iteration `iteration`, from 1."""
        return bool(self._weights) and (self.until is None or iteration <= self.until)

    def hold(self, iteration: int) -> bool:
        """Freezes or releases the parameters for `iteration`; returns whether that changed any."""
        learns = not self.holds(iteration)
        changed = [weight for weight in self._weights if weight.requires_grad != learns]
        for weight in changed:
            weight.requires_grad_(learns)
            weight.grad = None
        return bool(changed)

    def keep_statistics(self, iteration: int) -> None:
        """Puts the frozen normalisations in eval mode, after their network was put in training mode."""
        for module in self._statistics if self.holds(iteration) else ():
            module.eval()


def grouped(
    entries: Sequence[tuple[Sequence[str], Mapping[str, float]]],
    network: Mapping[str, nn.Parameter],
    heads: Mapping[str, nn.Parameter],
) -> tuple[dict[str, list[nn.Parameter]], dict[str, Mapping[str, float]]]:
    """The parameters that each entry's patterns mean, by the entry's name, and its settings; without others.

    An entry means parameters of the network or, where all of its patterns begin with `distill.`, those of the terms.
    A parameter belongs to the first entry that means it. Raises OptionsError where a pattern means nothing that is
    trained, or an entry is left with nothing.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    settings: dict[str, Mapping[str, float]] = {}
    taken: set[str] = set()
    for number, (patterns, own) in enumerate(entries):
        option = f"train.param_groups[{number}].params"
        of_heads = patterns[0].startswith(TERMS)
        parameters, whose = (heads, "the terms' heads") if of_heads else (network, "network_g")
        trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
        names = selected(option, patterns, trained, f"{whose} that {'are' if of_heads else 'is'} trained")
        if not names - taken:
            raise OptionsError(f"{option}: all that {', '.join(patterns)} means is in groups above it; put it first")
        name = ", ".join(patterns)
        groups[name] = [parameters[key] for key in trained if key in names - taken]
        settings[name] = own
        taken |= names
    return groups, settings


TERMS = "distill."
"""What names of parameters of distillation terms begin with, before the term's own name."""


def _with_modules(name: str) -> list[str]:
    """A name, and those of the modules around it: 'a.b.c' gives 'a', 'a.b', 'a.b.c'."""
    return list(accumulate(name.split("."), lambda around, part: f"{around}.{part}"))
