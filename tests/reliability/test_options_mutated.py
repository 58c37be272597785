"""Every unknown, misspelt, duplicate and wrongly typed key of an options file is refused, all at once, with its line.

Each key of the shipped files, as a run sees it with all defaults, is mutated. The files are written here, a key to a
line, so that the true line of every mistake is known. Mistakes are made in as many keys at once as do not stand in
one another, so that each must be told beside all others.

What may be accepted follows from two rules, not from a list:

* a value is right where options/schema.json, which comes from the sections' types and the constructors' hints, allows
  its type; `~` for a whole section, a dataset, a row, a metric or a term leaves it out;
* the entries of `networks`, `val.metrics` and `train.distill` are named by the user: no name of them is misspelt.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.mutations import (
    NAMED_BY_THE_USER,
    OPTIONS,
    Node,
    allows,
    edit_distance,
    is_for_training,
    load,
    misspellings,
    nodes_of,
    property_names,
    resolved,
    schema_of,
    shipped_files,
    walk,
    write,
)

from basicsr.config.load import load_options
from basicsr.config.yaml_files import load_yaml
from basicsr.config.yaml_reader import KeyPath
from basicsr.utils.errors import OptionsError
from basicsr.utils.text import key_text

# What is given in the place of each value: other types, and texts that look like them.
FEW_WRONG = ("seven", 7, True, None, ["seven"], {"seven": 7})
WRONG = ("seven", 7, 2.5, True, None, [], ["seven"], [7, 7, 7, 7, 7, 7, 7, 7, 7], {"seven": 7}, "", "None", "yes", "7")
CLAIM = re.compile(r": unknown key(?: \(did you mean '(?P<near>[^']+)'\?\))?(?P<rest>.*)")
Location = tuple[Path, KeyPath]


class Mutated:
    """One file with mistakes in it, and what must be told of it."""

    def __init__(self, data: dict[str, Any], file: Path, training: bool) -> None:
        self.data = data
        self.nodes = nodes_of(data)
        self.file = file
        self.training = training
        self.told: list[tuple[Node, KeyPath, str]] = []
        self.meant: dict[KeyPath, str] = {}

    def lines(self) -> list[str]:
        """The lines of the error that the file is refused with; none where it is accepted."""
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(write(self.nodes), "utf-8")
        try:
            load(self.file, self.training)
        except OptionsError as error:
            first, *lines = str(error).split("\n")
            assert first == f"{self.file}: {'one mistake' if len(lines) == 1 else f'{len(lines)} mistakes'}"
            return lines
        return []

    def check(self) -> int:
        """Asserts that each mistake is told at its line; returns how many there were."""
        lines = self.lines()
        for node, path, claim in self.told:
            start = f"{self.file}:{node.line}: {key_text(path)}"
            found = [line[len(start) :] for line in lines if line.startswith(start)]
            matching = [rest for rest in found if re.match(claim, rest)]
            # Three or more mistakes of one cause share a line, which names up to six of them with their lines.
            place = rf"{re.escape(key_text(path))}[^ ,]* \(line {node.line}\)"
            more = re.compile(rf"\b{re.escape(str(path[-1]))}[^ ,]*: .*, \.\.\.$")  # same name, in sections not listed
            shared = [line for line in lines if re.search(place, line) or more.search(line)]
            matching += [rest.group() for line in shared if (rest := re.search(f"{claim}.*; likewise .*", line))]
            assert matching, f"{start}{claim} is not told:\n" + "\n".join(lines)
            if path in self.meant:
                written = node.key.partition("_")[0] if path[:-1] == ("datasets",) else node.key
                assert_means(matching[0], written, self.meant[path])
        return len(self.told)

    def selected(self, keys: set[KeyPath]) -> Iterator[tuple[list[Node], Node]]:
        return ((siblings, node) for siblings, node in walk(self.nodes) if node.path in keys)

    def misspell(self, keys: set[KeyPath], swapped: bool) -> None:
        for siblings, node in self.selected(keys):
            if node.path[:-1] in NAMED_BY_THE_USER:
                continue
            taken = {other.key for other in siblings}
            whole, _, number = node.key.partition("_") if node.path[:-1] == ("datasets",) else (node.key, "", "")
            words = [word + _ + number for word in misspellings(whole)]
            taken |= property_names(node.path[:-1], self.data)
            words = [word for word in words if word not in taken]
            meant, node.key = whole, words[-1 if swapped else len(words) // 2]
            self.meant[(*node.path[:-1], node.key)] = meant
            self.told.append((node, (*node.path[:-1], node.key), r": unknown key"))

    def add_unknown(self, keys: set[KeyPath]) -> None:
        for siblings, node in self.selected(keys):
            added = Node(f"zzq_{node.key}", 1, path=(*node.path[:-1], f"zzq_{node.key}"))
            siblings.insert(siblings.index(node) + 1, added)
            is_named = node.path[:-1] in NAMED_BY_THE_USER
            self.told.append((added, added.path, ": .*mapping" if is_named else ": unknown key"))

    def double(self, keys: set[KeyPath]) -> None:
        for siblings, node in self.selected(keys):
            again = Node(node.key, node.value if not isinstance(node.value, list) else 1, path=node.path)
            siblings.append(again)
            self.told.append((again, node.path, ": is given twice"))

    def give(self, keys: set[KeyPath], value: Any) -> None:
        for _, node in self.selected(keys):
            node.value = value
            self.told.append((node, node.path, r"(\[|: (.*, got|must be|no .* is called|is required))"))


def assert_means(message: str, written: str, meant: str) -> None:
    """Asserts that a message names the key that was meant, or one as few letters away."""
    found = CLAIM.match(message)
    assert found is not None and found["near"] is not None, f"{written}: {message} does not name {meant}"
    allowed = found["rest"].partition("; allowed: ")[2].split(", ")
    closest = min(edit_distance(written, name) for name in [*allowed, meant])
    assert edit_distance(written, found["near"]) == closest, f"{written}: {message} does not name {meant}"


def is_allowed(path: KeyPath, value: Any, data: dict[str, Any]) -> bool:
    """The rule of what may be accepted; `schema_of` is None for the one block that no schema describes."""
    leaves_out = len(path) == 1 or path[:-1] in (*NAMED_BY_THE_USER, ("datasets",))
    schema = schema_of(path, data)
    if schema is None:
        return isinstance(value, str)
    return allows(schema, value) or (value is None and leaves_out and isinstance(nodes_value(path, data), dict))


def nodes_value(path: KeyPath, data: Any) -> Any:
    for part in path:
        data = data[part]
    return data


def groups(keys: list[KeyPath]) -> Iterator[set[KeyPath]]:
    """The keys in groups of which none stands in another: by depth; `type`, which its neighbours depend on, apart."""
    for depth in range(1, 1 + max(map(len, keys))):
        for is_type in (False, True):
            if group := {key for key in keys if len(key) == depth and (key[-1] == "type") is is_type}:
                yield group


def mutate(file: Path, data: dict[str, Any], keys: list[KeyPath], folder: Path, values: Any = WRONG) -> Counter[str]:
    """Makes every kind of mistake in each of `keys`; returns how many were refused, and how many values allowed."""
    count: Counter[str] = Counter()
    training = is_for_training(file)
    written = folder / ("train" if training else "test") / file.name

    def new() -> Mutated:
        return Mutated(data, written, training)

    for group in groups(keys):
        for swapped in (False, True):
            mutated = new()
            mutated.misspell(group, swapped)
            count["misspelt"] += mutated.check()
        mutated = new()
        mutated.add_unknown(group)
        count["unknown"] += mutated.check()
        mutated = new()
        mutated.double(group)
        count["twice"] += mutated.check()
        for value in values:
            wrong = {key for key in group if not is_allowed(key, value, data)}
            if wrong:
                mutated = new()
                mutated.give(wrong, value)
                count["wrongly typed"] += mutated.check()
            if right := group - wrong:
                mutated = new()
                mutated.give(right, value)
                mutated.lines()  # accepted, or refused for what it says: never another exception
                count["allowed"] += len(right)
    return count


def kind_of(path: KeyPath, data: dict[str, Any], training: bool) -> tuple[Any, ...]:
    """What makes a key another one than a key of another file: where it is, beside which type, what it holds."""
    block = nodes_value(path[:-1], data)
    place = [
        "*" if path[:index] in (*NAMED_BY_THE_USER, ("datasets",)) and part != "train" else part
        for index, part in enumerate(path)
    ]
    return (*place, str(block.get("type")), type(nodes_value(path, data)), training)


def covering() -> list[tuple[Path, dict[str, Any], list[KeyPath]]]:
    """Of all files those keys that no earlier file has, files with most of them first."""
    everything = [(file, resolved(file)) for file in shipped_files()]
    everything.sort(key=lambda pair: -sum(1 for _ in walk(nodes_of(pair[1]))))
    seen: set[tuple[Any, ...]] = set()
    chosen = []
    for file, data in everything:
        keys = []
        for _, node in walk(nodes_of(data)):
            kind = kind_of(node.path, data, is_for_training(file))
            if kind not in seen:
                seen.add(kind)
                keys.append(node.path)
        if keys:
            chosen.append((file, data, keys))
    return chosen


def test_one_mistake_of_each_kind_in_every_distinct_key(tmp_path):
    count: Counter[str] = Counter()
    for file, data, keys in covering():
        count += mutate(file, data, keys, tmp_path, FEW_WRONG)
    assert count["unknown"] == count["twice"] > 400
    assert count["wrongly typed"] > 4 * count["unknown"]
    assert count["allowed"] < count["unknown"]


@pytest.mark.long
def test_every_mistake_in_every_key_of_every_file(tmp_path):
    count: Counter[str] = Counter()
    files = shipped_files()
    for file in files:
        data = resolved(file)
        done = mutate(file, data, [node.path for _, node in walk(nodes_of(data))], tmp_path)
        print(f"{file.relative_to(OPTIONS)}: {dict(done)}", flush=True)
        count += done
    print(f"{len(files)} files, {count['unknown']} keys: {dict(count)}")
    assert len(files) > 150 and count["unknown"] == count["twice"] > 20_000


@pytest.mark.long
def test_every_mistake_alone_in_its_file(tmp_path):
    count: Counter[str] = Counter()
    for file, data, keys in covering():
        for key in keys:
            count += mutate(file, data, [key], tmp_path)
    print(dict(count))


def misspell_in_place(leaf: Path) -> int:
    """Misspells each key of a file, and of the pieces it builds on, where it is written; returns how many."""
    training = is_for_training(leaf)
    done = 0
    for path, position in load_yaml(leaf).positions().items():
        if path[:-1] in NAMED_BY_THE_USER or any(isinstance(part, int) for part in path):
            continue
        file, key = Path(position.file), str(path[-1])
        text = file.read_text("utf-8")
        lines = text.split("\n")
        wrong = f"{key[0]}q{key[1:]}"
        lines[position.line - 1] = re.sub(rf"(?<!\w){key}:", f"{wrong}:", lines[position.line - 1])
        file.write_text("\n".join(lines), "utf-8")
        with pytest.raises(OptionsError) as caught:
            load(leaf, training)
        # Of a piece that several sections build on, one line names the key, in up to six of them.
        told = re.compile(rf"{re.escape(str(position))}: \S*\b{re.escape(wrong)}: unknown key")
        assert told.search(str(caught.value)), f"{told.pattern} is not told:\n{caught.value}"
        file.write_text(text, "utf-8")
        done += 1
    return done


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(OPTIONS, folder / "options"))


@pytest.mark.parametrize("name", ["train/mcadkd_edsr_x2.yml", "test/quickstart.yml"])
def test_a_misspelt_key_is_told_in_the_file_and_line_that_it_is_written_in(name, tmp_path):
    assert misspell_in_place(copied(tmp_path) / name) > 30


@pytest.mark.long
def test_every_key_of_every_file_is_told_where_it_is_written(tmp_path):
    folder = copied(tmp_path)
    done = [misspell_in_place(leaf) for leaf in sorted(folder.glob("t*/*.yml"))]
    print(f"{len(done)} files, {sum(done)} keys")


def test_a_misspelt_base_is_told(tmp_path):
    leaf = copied(tmp_path) / "train/kd_rcan_x3.yml"
    leaf.write_text(leaf.read_text("utf-8").replace("\n_base_:", "\n_bsae_:"), "utf-8")
    with pytest.raises(OptionsError, match=r"kd_rcan_x3\.yml:3: _bsae_: unknown key \(did you mean '_base_'\?\)"):
        load(leaf, training=True)


MISTAKES = """\
name: kd
model_type: KDModel
scale: 2
chanels_last: true
? [1]
: 2
logger:
  print_freq: often
  use_tb_logger: true
  print_freq: 100
datasets:
  train:
    type: PairedImageDataset
    name: d\u0007
    dataroot_gt: nowhere/HR
    dataroot_lq: .
    gt_size: 97
    io_backend: {type: disk}
network_g: {type: EDSR, num_in_ch: 3, num_out_ch: 3, upscale: 3}
network_t: {type: EDSR, num_in_ch: 3, num_out_ch: 3, upscale: 2, num_feat: 010}
path: {pretrain_network_t: nowhere.pth}
train:
  total_iter: 10
  optim_g: {type: Adam, lr: 1e-4, betas: 0.9, momentum: 0.9}
  scheduler: {type: MultiStepLR, milestone: [5]}
  resp_kd_opt: !loss {type: L1Loss}
""".replace("d\u0007", '"d\\u0007"')


def test_a_mistake_of_each_kind_is_told_in_one_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("options.yml").write_text(MISTAKES, "utf-8")
    overrides = ["train:totl_iter=3", "scale", "val=[1"]
    with pytest.raises(OptionsError) as caught:
        load_options("options.yml", overrides=overrides, training=True)
    first, *lines = str(caught.value).split("\n")
    assert first == f"options.yml: {len(lines)} mistakes"
    expected = [
        "--force_yml: 'scale': is not of the form train:total_iter=1000",
        "--force_yml: not valid YAML",
        "--force_yml: train.totl_iter: unknown key (did you mean 'total_iter'?)",
        "options.yml:4: chanels_last: unknown key (did you mean 'channels_last'?)",
        "options.yml:5: key of lists or mappings is not text",
        "options.yml:8: logger.print_freq: input should be a valid integer, got 'often'",
        "options.yml:10: logger.print_freq: is given twice, here and at options.yml:8",
        "options.yml:14: datasets.train.name: holds the control character U+0007",
        "options.yml:15: datasets.train.dataroot_gt: there is no folder nowhere/HR",
        "options.yml:17: datasets.train.gt_size: must be a multiple of scale 2, got 97; take 96",
        "options.yml:19: network_g.upscale: is 3, but scale is 2",
        "options.yml:20: network_t.num_feat: 010 has a leading zero",
        "options.yml:21: path.pretrain_network_t: there is no file nowhere.pth",
        "options.yml:24: train.optim_g.betas: input should be a list, got 0.9",
        "options.yml:24: train.optim_g.momentum: unknown key; allowed: lr, betas",
        "options.yml:25: train.scheduler.milestone: unknown key (did you mean 'milestones'?)",
        "options.yml:25: train.scheduler.milestones: is required",
        "options.yml:26: train.resp_kd_opt: tag !loss is not read",
    ]
    for line in expected:
        assert any(told.startswith(line) for told in lines), f"{line} is not told:\n{caught.value}"
    assert len(lines) == len(expected), str(caught.value)
