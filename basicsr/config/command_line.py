"""BasicSR's command lines of train.py and test.py."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from basicsr.utils.errors import OptionsError
from basicsr.utils.text import nearest

_GRACE_SECONDS = 5.0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints what is wrong, once if several ranks have the same command line."""
        if os.environ.get("RANK", "0") == "0":
            super().error(message)
        time.sleep(_GRACE_SECONDS)  # torchrun stops all when one has ended, perhaps before rank 0 has printed
        self.exit(OptionsError.exit_code)


def parse_arguments(argv: Sequence[str] | None, training: bool) -> argparse.Namespace:
    """Reads the command line of train.py (`training`) or test.py; that of the process if `argv` is None."""
    what = "Trains a network, with or without a teacher." if training else "Tests networks on benchmarks."
    parser = _Parser(allow_abbrev=False, description=what)
    add = parser.add_argument
    add("-opt", "--opt", metavar="FILE", help="options file (YAML)")
    add("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="who started the ranks")
    if training:
        add("--auto_resume", "--auto-resume", action="store_true", help="continue from the newest state, if any")
        why = "resume although options or images changed so that it is another experiment"
        add("--allow_config_change", "--allow-config-change", action="store_true", help=why)
        add("--debug", action="store_true", help="name 'debug_...', log every, evaluate and save each 8th iteration")
    add("--local_rank", "--local-rank", type=int, default=0, help="accepted and ignored")
    many: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "metavar": "KEY=VALUE"}
    add("--force_yml", "--force-yml", **many, help="set options: train:total_iter=1000 ...")
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        parser.error("; ".join(_unknown(text, known, arguments.opt) for text in unknown[:3]))
    if arguments.opt is None:
        folder = "train" if training else "test"
        parser.error(f"-opt FILE is required: the options file, such as -opt options/{folder}/NAME.yml")
    return arguments


def _unknown(text: str, known: Sequence[str], given: str | None) -> str:
    message = f"unknown argument {text}"
    if re.fullmatch(r"[\w.]+(:[\w.]+)*=.*", text):
        return f"{message}: write it after --force_yml"
    if text.startswith("-"):
        near = nearest(f"--{text.lstrip('-').partition('=')[0]}", known)
        return f"{message}{near}; allowed: {', '.join(known)}"
    if text.endswith((".yml", ".yaml")):
        return f"{message}: {'one options file at a time' if given is not None else f'write -opt {text}'}"
    return message
