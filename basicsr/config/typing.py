"""Types options piece by piece, so that one mistake does not keep the others from being told."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from basicsr.config.component_blocks import Finding
from basicsr.config.normalise import unknown_key
from basicsr.config.schema import FrozenMapping, Options
from basicsr.config.yaml_entries import KeyPath
from basicsr.utils.signatures import describe

# What stands for required values that are missing or wrong while the rest is checked; `*` is any key.
_STAND_INS: dict[KeyPath, Any] = {
    ("name",): "name",
    ("scale",): 1,
    ("datasets", "*", "scale"): 1,
    ("datasets", "*", "type"): "",
    ("train", "total_iter"): 1,
    ("train", "optim_g"): FrozenMapping({"type": "Adam"}),
}
_NAMES_OF_DATASETS: tuple[KeyPath, ...] = (("val", "best", "dataset"), ("report", "regions"))


@dataclass(frozen=True)
class Typed:
    """Options, and what is wrong with them.

    Attributes:
        findings: the mistakes.
        dropped: the keys that were left out or replaced, so that the rest could be typed.
        options: the rest; None where not even that makes options.
    """

    findings: list[Finding]
    dropped: list[KeyPath]
    options: Options | None

    @property
    def has_scale(self) -> bool:
        """Whether the scale is the one that was given, so that what depends on it can be checked."""
        return ("scale",) not in self.dropped

    def hides(self, key: KeyPath) -> bool:
        """Whether a finding at `key` only follows from a key that was left out for a mistake of its own."""
        is_nameless = any(gone[:1] == ("datasets",) and gone[-1] == "name" for gone in self.dropped)
        if is_nameless and any(key[: len(user)] == user for user in _NAMES_OF_DATASETS):
            return True
        return any(key[: len(gone)] == gone or gone[: len(key)] == key for gone in self.dropped)


def typed_options(data: dict[str, Any]) -> Typed:
    """Types the data; where it cannot, leaves out what is wrong, or puts what is right in its place."""
    findings: dict[KeyPath, list[str]] = {}
    dropped: list[KeyPath] = []
    replaced: dict[KeyPath, Any] = {}
    options = None
    while options is None and () not in dropped:
        try:
            options = Options.model_validate(_changed(data, dropped, replaced))
        except ValidationError as error:
            before = len(dropped) + len(replaced)
            for item in error.errors(include_url=False):
                key, message = _translated(item, data)
                is_missing = item["type"] == "missing"
                if not (is_missing and key in dropped):
                    told = ("scale",) if key[0] == "datasets" and key[-1] == "scale" else key
                    findings.setdefault(told, []).append(message)
                out = _droppable(key)
                if is_missing and (stand_in := _stand_in(key)) is not None:
                    replaced[key] = stand_in
                elif is_missing:
                    out = _droppable(key[:-1])
                if out not in dropped:
                    dropped.append(out)
            assert len(dropped) + len(replaced) > before, f"still wrong without {dropped}: {error}"
    sentences = [(key, " or ".join(dict.fromkeys(messages))) for key, messages in findings.items()]
    return Typed(sentences, dropped, options)


def _stand_in(key: KeyPath) -> Any:
    if len(key) == 3 and key[0] == "datasets":
        return key[1] if key[2] == "name" else _STAND_INS.get(("datasets", "*", key[2]))
    return _STAND_INS.get(key)


def _translated(item: Any, data: dict[str, Any]) -> Finding:
    """A validator's error as the key of the options it is about, and a sentence."""
    if item["type"] == "missing":
        return tuple(item["loc"]), "is required"
    key: KeyPath = ()
    value: Any = data
    for part in item["loc"]:
        inside = isinstance(value, dict) and part in value
        if not inside and not (isinstance(value, tuple) and isinstance(part, int)):
            break
        key, value = (*key, part), value[part]
    if item["type"] == "extra_forbidden":
        return key, unknown_key(key)
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return key, message
    if item["type"] == "model_type":
        message = "Input should be a mapping"
    return key, describe(message, value)


def _droppable(key: KeyPath) -> KeyPath:
    """The key itself, or the list around it."""
    return tuple(itertools.takewhile(lambda part: isinstance(part, str), key))


def _changed(data: dict[str, Any], dropped: list[KeyPath], replaced: dict[KeyPath, Any]) -> dict[str, Any]:
    """A copy of nested mappings without the keys in `dropped`, and with the values in `replaced`."""
    copy = _copied(data)
    for key in dropped:
        _holder(copy, key).pop(key[-1], None)
    for key, value in replaced.items():
        _holder(copy, key)[key[-1]] = value
    return copy


def _copied(value: Any) -> Any:
    return {key: _copied(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def _holder(data: dict[str, Any], key: KeyPath) -> dict[Any, Any]:
    """The mapping that holds `key`; an empty one where it was left out itself."""
    holder: Any = data
    for part in key[:-1]:
        holder = holder.get(part) if isinstance(holder, dict) else None
    return holder if isinstance(holder, dict) else {}
