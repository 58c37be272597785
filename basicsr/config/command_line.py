"""The command lines of train.py and test.py, which are BasicSR's, and what is meant by those that are not quite."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Sequence
from typing import NoReturn

from basicsr.utils.errors import OptionsError
from basicsr.utils.text import nearest

_GRACE_SECONDS = 5.0
_BRACKETS = (("[", "]"), ("{", "}"))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Says what is wrong, once where several ranks have the same command line."""
        if os.environ.get("RANK", "0") == "0":
            super().error(message)
        time.sleep(_GRACE_SECONDS)  # torchrun stops all when one has ended, perhaps before rank 0 has spoken
        self.exit(OptionsError.exit_code)


def parse_arguments(argv: Sequence[str] | None, training: bool) -> argparse.Namespace:
    """Reads the command line of train.py or test.py.

    Args:
        argv: arguments without the program's name; those of the process where None.
        training: whether this is train.py.

    Returns:
        `opt` (path), `launcher`, `force_yml` (list of `a:b=value`), and in training `auto_resume`,
        `allow_config_change` and `debug`.
        `local_rank` is only accepted: launchers pass it on in the environment.
    """
    parser = _Parser(
        allow_abbrev=False,
        description="Trains a network, with or without a teacher." if training else "Tests networks on benchmarks.",
    )
    add = parser.add_argument
    add("-opt", "--opt", type=str, metavar="FILE", help="options file (YAML)")
    add("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="who started the ranks")
    if training:
        add("--auto_resume", "--auto-resume", action="store_true", help="continue from the newest state, if any")
        add(
            "--allow_config_change",
            "--allow-config-change",
            action="store_true",
            help="resume although options or images changed so that it is another experiment",
        )
        add("--debug", action="store_true", help="name 'debug_...', log every, evaluate and save each 8th iteration")
    add("--local_rank", "--local-rank", type=int, default=0, help="accepted and ignored")
    add(
        "--force_yml",
        "--force-yml",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="set options: train:total_iter=1000 ...",
    )
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        parser.error("; ".join(_unknown(text, known, arguments.opt) for text in unknown[:3]))
    if arguments.opt is None:
        folder = "train" if training else "test"
        parser.error(f"-opt FILE is required: the options file, such as -opt options/{folder}/NAME.yml")
    return arguments


def _unknown(text: str, known: Sequence[str], given: str | None) -> str:
    """The message for an unknown argument."""
    if re.fullmatch(r"[\w.]+(:[\w.]+)*=.*", text):
        return f"unknown argument {text}: write it after --force_yml"
    if not text.startswith("-"):
        hint = "one options file at a time" if given is not None else f"write -opt {text}"
        return f"unknown argument {text}: {hint}" if text.endswith((".yml", ".yaml")) else f"unknown argument {text}"
    near = nearest(f"--{text.lstrip('-').partition('=')[0]}", list(known))
    return f"unknown argument {text}{near}; allowed: {', '.join(known)}"


def gathered(overrides: Sequence[str]) -> list[tuple[str, str | None]]:
    """The overrides of `--force_yml`, each with what to say where blanks took it apart, else None.

    `train:total_iter 5`, `train:total_iter = 5` and `milestones=[5, 6]` reach the program as several arguments.
    """
    groups: list[list[str]] = []
    for text in overrides:
        is_whole = re.match(r"[\w.:]+=[^=]", text) is not None
        if groups and _is_open(" ".join(groups[-1])) and not is_whole:
            groups[-1].append(text)
        else:
            groups.append([text])
    return [(" ".join(group), None if len(group) == 1 else _without_blanks(group)) for group in groups]


def _is_open(text: str) -> bool:
    value = text.partition("=")[2]
    return not value.strip() or any(value.count(left) > value.count(right) for left, right in _BRACKETS)


def _without_blanks(group: Sequence[str]) -> str:
    key, equals, value = " ".join(group).partition("=")
    if not equals:
        key, value = group[0], " ".join(group[1:])
    return f"holds blanks, which take it apart; write {key.strip(' :')}={value.replace(' ', '')}, or put it in quotes"
