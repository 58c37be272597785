"""What a study runs: a base options file, the pieces that make it each method, and the seeds.

A run's options are the base, without what makes a method (`METHOD_KEYS`), with the method's piece merged over it as
`_base_` merges files, then the command line's changes, then what the study sets: name, seed, folder.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basicsr.config.load import load_options
from basicsr.config.schema import MODEL_TYPES, Options, flat, thaw
from basicsr.config.without_hr import block_lacks_hr
from basicsr.config.yaml_files import OVERRIDE_FILE, Document, load_yaml
from basicsr.config.yaml_reader import merge_entries
from basicsr.engine.precision_choice import Choice
from basicsr.utils.errors import OptionsError
from basicsr.utils.precision import Amp
from basicsr.utils.text import key_text, nearest

METHODS = Path(__file__).resolve().parents[2] / "options/methods"

# What makes a method, and what overrules it in the base where the base stands alone.
METHOD_KEYS: dict[tuple[str, ...], str] = {
    ("model_type",): "SRModel",
    ("network_d",): "~",
    ("discriminator",): "~",
    ("train", "pixel_opt"): "~",
    ("train", "perceptual_opt"): "~",
    ("train", "adversarial_opt"): "~",
    ("train", "gan_opt"): "~",
    ("train", "resp_kd_opt"): "~",
    ("train", "contrastive_opt"): "~",
    ("train", "distill"): "{}",
    ("train", "optim_d"): "~",
    ("train", "train_adversary"): "true",
    ("train", "net_d_iters"): "1",
    ("train", "net_d_init_iters"): "0",
}
_NEED_A_TEACHER = ("resp_kd_opt", "contrastive_opt", "distill")
_SAME_FOR_ALL: tuple[tuple[str, ...], ...] = (
    *(
        (name,)
        for name in ("name", "manual_seed", "scale", "num_gpu", "crop_border", "datasets", "networks", "val", "report")
    ),
    *((name,) for name in ("logger", "dist_params", "skip_missing")),
    *(("path", name) for name in ("resume_state", "experiments_root", "results_root")),
    ("train", "total_iter"),
    ("train", "accumulate"),
)
_CACHE = "teacher_cache"
_SET_BY_THE_STUDY = (("name",), ("manual_seed",), ("path", "experiments_root"), ("path", "results_root"))
_STUDY_NAME = re.compile(r"\w[\w.+=@-]*\Z")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        method: its name.
        seed: of everything random.
        content: what its options file holds.
        options: the same, typed and checked.
        file: where its options file is written.
    """

    method: str
    seed: int
    content: Mapping[str, Any]
    options: Options
    file: Path

    @property
    def label(self) -> str:
        """How lines speak of it."""
        return f"seed {self.seed} {self.method}"

    @property
    def teacher(self) -> Path | None:
        """The file of the teacher's weights, if it has one."""
        path = self.options.path.pretrain_network_t if self.options.model_type == "KDModel" else None
        return Path(path) if path is not None else None


@dataclass(frozen=True)
class Study:
    """All of it.

    Attributes:
        name: of the study.
        base: the base options file.
        methods: the file of each method's piece, by its name.
        seeds: without repetition.
        reference: the method that others are compared with.
        overrides: changes of the command line.
        plain: the base's options, as of the student alone: what all runs share.
        runs: all methods of the first seed, then of the second.
        remarks: how methods differ from the base beside what makes a method, and what of the base is not used.
    """

    name: str
    base: Path
    methods: Mapping[str, Path]
    seeds: tuple[int, ...]
    reference: str
    overrides: tuple[str, ...]
    plain: Options
    runs: tuple[Run, ...]
    remarks: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where runs, their options and records lie."""
        return studies_folder(self.plain) / self.name

    @property
    def precision_file(self) -> Path:
        """Where it is kept what `amp: auto` is in all runs."""
        return self.folder / "precision.json"

    @property
    def open_runs(self) -> list[Run]:
        """Runs whose precision is still to be chosen."""
        return [run for run in self.runs if "auto" in (run.options.amp, run.options.amp_teacher)]

    @property
    def results(self) -> Path:
        """Where the tables go."""
        return Path(self.plain.path.results_root or "results") / self.name


def studies_folder(options: Options) -> Path:
    """The folder of all studies."""
    return Path(options.path.experiments_root or "experiments") / "studies"


def own_pieces(base: Path) -> Path | None:
    """The folder of a base's own pieces of methods, at its networks' and patches' size.

    It lies beside the base and is called as it, or as its name begins: `small` for `small_edsr_x2.yml`.
    """
    words = base.stem.split("_")
    names = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    return next((base.parent / name for name in names if (base.parent / name).is_dir()), None)


def find_methods(given: Sequence[str], base: Path) -> dict[str, Path]:
    """The file of each method, by its name, or a path.

    NAME stands for NAME.yml among the base's own pieces, else for options/methods/NAME.yml.

    Raises:
        OptionsError: there is no such file, or two methods have one name.
    """
    found: dict[str, Path] = {}
    own = own_pieces(base)
    for entry in given:
        is_path = "/" in entry or entry.endswith((".yml", ".yaml"))
        file = Path(entry).expanduser() if is_path else METHODS / f"{entry}.yml"
        if own is not None and not is_path and (own / f"{entry}.yml").is_file():
            file = own / f"{entry}.yml"
        if not file.is_file():
            there = sorted(path.stem for path in METHODS.glob("*.yml"))
            if is_path:
                raise OptionsError(f"--methods {entry}: there is no such file; give a method's options, or its name")
            raise OptionsError(
                f"--methods {entry}: no method has this name{nearest(entry, there)}; there are: {', '.join(there)};"
                " or give the path of a file"
            )
        if file.stem in found:
            raise OptionsError(f"--methods: two are called {file.stem}; rename a file, or leave one out")
        found[file.stem] = file
    return found


def plan_study(
    *,
    base: Path,
    name: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    reference: str | None = None,
    overrides: Sequence[str] = (),
    teacher: Path | None = None,
    teacher_is_there: bool = True,
    precision: Choice | None = None,
) -> Study:
    """Reads and checks all options; writes nothing.

    Args:
        base: the base options file.
        name: of the study.
        methods: names of files in options/methods, or paths.
        seeds: one or more.
        reference: what the others are compared with; `scratch` where None and it is there, else the first method.
        overrides: `--force_yml`'s changes, for all runs.
        teacher: weights that `--teacher-opt` leaves; the base's where None.
        teacher_is_there: whether that file must exist by now.
        precision: what stands for `amp: auto`; None where that is still to be chosen.

    Raises:
        OptionsError: one line for each mistake.
    """
    _check_words(name, seeds, overrides)
    files = find_methods(methods, base)
    if reference is None:
        reference = "scratch" if "scratch" in files else next(iter(files))
    if reference not in files:
        raise OptionsError(f"--reference {reference}: is none of the methods; there are: {', '.join(files)}")
    doubts: list[str] = []
    plain = _plain(base, name, overrides, doubts)
    known = {line.partition(": ")[2] for line in doubts}
    if precision is not None:
        plain = plain.model_copy(update=_chosen(thaw(plain), precision))
    pieces = {method: _read_piece(file) for method, file in files.items()}
    document = _read(base)
    dropped = _drop_method_keys(document)
    runs: list[Run] = []
    for seed in seeds:
        for method, piece in pieces.items():
            content = _content(document, piece, overrides)
            _settle(content, plain, name, method, seed)
            if precision is not None:
                content.update(_chosen(content, precision))
            _give_teacher(content, base, method, teacher)
            options, own_doubts = _typed(content, files[method], paths=teacher_is_there)
            doubts += [f"{method}: {line}" for line in own_doubts if seed == seeds[0] and line not in known]
            runs.append(Run(method, seed, content, options, _options_file(plain, name, method, seed)))
    remarks = [f"{base}: {', '.join(dropped)} not used: a method's own file says it"] if dropped else []
    remarks += doubts
    remarks += [f"{precision.reason}; in all runs"] if precision is not None else []
    own = own_pieces(base)
    of_base = [file for method, file in files.items() if file.parent == own and method in map(str, methods)]
    remarks += [f"{file.stem} is {file}, the base's own; for another give its path" for file in of_base]
    sets = _training_sets(document.data())
    for run in runs[: len(files)]:
        if gone := [f"datasets.{key}" for key in sets if key not in run.options.datasets]:
            remarks.append(f"{run.method} has no teacher, and trains without {', '.join(gone)}, without HR images")
        remarks += [f"{run.method} differs from the base in {line}" for line in _differences(plain, run.options)]
    return Study(name, base, files, tuple(seeds), reference, tuple(overrides), plain, tuple(runs), tuple(remarks))


def _chosen(content: Mapping[str, Any], precision: Choice) -> dict[str, Amp]:
    return {key: value for key, value in precision.kept().items() if content.get(key) == "auto"}


def _check_words(name: str, seeds: Sequence[int], overrides: Sequence[str]) -> None:
    if not _STUDY_NAME.match(name) or ".." in name:
        raise OptionsError(f"--name {name!r}: must be usable as a folder's name: letters, digits, . _ + = @ -, no ..")
    repeated = sorted({seed for seed in seeds if list(seeds).count(seed) > 1})
    if repeated:
        raise OptionsError(f"--seeds: {', '.join(map(str, repeated))} is given twice; give each once")
    if negative := [seed for seed in seeds if seed < 0]:
        raise OptionsError(f"--seeds {negative[0]}: a seed is a whole number of at least 0")
    for override in overrides:
        key = tuple(part.strip() for part in override.partition("=")[0].split(":"))
        if any(key[: len(own)] == own for own in _SET_BY_THE_STUDY):
            raise OptionsError(f"{OVERRIDE_FILE} {override}: {key_text(key)} is set by the study; leave it out")
        if any(key[: len(own)] == own for own in METHOD_KEYS):
            raise OptionsError(
                f"{OVERRIDE_FILE} {override}: {key_text(key)} makes a method; put it into a file of the method's"
            )


def _read(file: Path) -> Document:
    document = load_yaml(file)
    if document.problems:
        raise OptionsError("\n".join(map(str, document.problems)))
    return document


def _plain(base: Path, name: str, overrides: Sequence[str], doubts: list[str]) -> Options:
    """The base as options of the student alone, whose mistakes are told with the places where they stand."""
    document = _read(base)
    for override in overrides:
        document.set(override)
    present, sets = document.positions(), _training_sets(document.data())
    own = [f"{':'.join(key)}={value}" for key, value in METHOD_KEYS.items() if key in present]
    of_teacher = [("path", "pretrain_network_t"), *(("datasets", key, _CACHE) for key in sets)]
    own += [f"{':'.join(key)}=~" for key in of_teacher if key in present]
    if block_lacks_hr(sets.get("train", {})):  # nothing can be learned without a teacher: any stands for it
        own += ["network_t={type: Bicubic, upscale: '{scale}'}", "path:allow_random_teacher=true"]
        own += ["model_type=KDModel", "train:resp_kd_opt={type: L1Loss}"]
    else:
        own += ["network_t=~", "model_type=SRModel", "train:pixel_opt={type: L1Loss}"]
        own += [f"datasets:{key}=~" for key, block in sets.items() if block_lacks_hr(block)]
    own = [*overrides, *own, f'name="{name}"']
    options = load_options(base, overrides=own, training=True, warn=doubts.append)
    if not options.datasets_of("val") or not options.val.metrics:
        raise OptionsError(f"{base}: has nothing to compare by: give datasets: val (val_1, ...) and val: metrics")
    return options


def _training_sets(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    datasets = content.get("datasets")
    found = datasets.items() if isinstance(datasets, dict) else ()
    return {key: block for key, block in found if key.partition("_")[0] == "train" and isinstance(block, dict)}


def _drop_method_keys(document: Document) -> list[str]:
    """Takes out of the base what makes a method; returns what that was, the type of model excepted."""
    dropped = []
    for key in METHOD_KEYS:
        section = document.root.value
        for part in key[:-1]:
            section = section[part].value if part in section else {}
        if isinstance(section, dict) and section.pop(key[-1], None) is not None and key != ("model_type",):
            dropped.append(key_text(key))
    return dropped


def _read_piece(file: Path) -> Document:
    piece = _read(file)
    positions = piece.positions()
    for section in ("path", "train"):
        if not isinstance(piece.data().get(section, {}), dict):
            raise OptionsError(f"{positions[(section,)]}: {section}: must be a mapping")
    for key in _SAME_FOR_ALL:
        if key in positions:
            raise OptionsError(
                f"{positions[key]}: {key_text(key)}: is the same for all methods of a study; say it in the base file"
            )
    return piece


def _content(base: Document, piece: Document, overrides: Sequence[str]) -> dict[str, Any]:
    merged = Document(copy.deepcopy(merge_entries(base.root, piece.root)))
    for override in overrides:
        merged.set(override)
    return merged.data()


def _settle(content: dict[str, Any], plain: Options, name: str, method: str, seed: int) -> None:
    """Fills in what the study says, and what follows for a method that does not say what model it needs."""
    content.pop("name", None)
    front = {"name": f"{name}_{method}_seed{seed}"}
    train = content.get("train")
    distils = isinstance(train, dict) and any(train.get(key) for key in _NEED_A_TEACHER)
    model_type = content.pop("model_type", None) or ("KDModel" if distils else "SRModel")
    rest = {key: value for key, value in content.items() if key != "manual_seed"}
    content.clear()
    content.update(front, model_type=model_type, manual_seed=seed, **rest)
    content["path"] = {**(content.get("path") or {}), "experiments_root": str(studies_folder(plain) / name)}
    content["val"] = {"val_freq": plain.train.total_iter, **(content.get("val") or {})}
    if MODEL_TYPES.get(str(model_type)) == "SRModel":
        content.pop("network_t", None)
        content["path"].pop("pretrain_network_t", None)
        for key, block in _training_sets(content).items():
            block.pop(_CACHE, None)
            if key != "train" and block_lacks_hr(block):
                del content["datasets"][key]


def _give_teacher(content: dict[str, Any], base: Path, method: str, teacher: Path | None) -> None:
    if MODEL_TYPES.get(str(content["model_type"])) != "KDModel":
        return
    path = content["path"]
    if content.get("network_t") is None:
        raise OptionsError(f"{base}: method {method} learns from a teacher: describe it in network_t")
    given = path.get("pretrain_network_t")
    if teacher is not None:
        if given is not None and Path(str(given)).expanduser() != teacher:
            raise OptionsError(
                f"{base}: path.pretrain_network_t is {given}, but --teacher-opt leaves {teacher}; keep one of them"
            )
        path["pretrain_network_t"] = str(teacher)
    elif given is None and not path.get("allow_random_teacher"):
        raise OptionsError(
            f"{base}: method {method} learns from a teacher: give its weights in path: pretrain_network_t, or train"
            " it first by --teacher-opt FILE"
        )


def _typed(content: Mapping[str, Any], piece: Path, *, paths: bool) -> tuple[Options, list[str]]:
    """The options, and the warnings about them."""
    doubts: list[str] = []
    try:
        options = load_options(content, training=True, paths=paths, warn=doubts.append)
        return options, [line.removeprefix("options: ") for line in doubts]
    except OptionsError as error:
        lines = [line.removeprefix("options: ") for line in str(error).splitlines()[1:]]
        raise OptionsError("\n".join(f"{piece} over the base: {line}" for line in lines)) from None


def _options_file(plain: Options, name: str, method: str, seed: int) -> Path:
    return studies_folder(plain) / name / "options" / f"{method}_seed{seed}.yml"


def _differences(plain: Options, options: Options) -> list[str]:
    """What a method changes beside what makes a method: the student or its training would not be the others'."""
    own = [key_text(key) for key in (*METHOD_KEYS, *_SET_BY_THE_STUDY)]
    own += ["network_t", "path.pretrain_network_", "path.param_key_", "path.strict_load_", "path.allow_random_teacher"]
    own += ["val.val_freq", *(f"datasets.{key}.{_CACHE}" for key in options.datasets_of("train"))]
    own += [f"datasets.{key}." for key in options.further_sets if key not in plain.further_sets]
    before, after = (
        {key: value for key, value in flat(thaw(part)).items() if not key.startswith(tuple(own))}
        for part in (plain, options)
    )
    return [
        f"{key}: {before.get(key, 'not set')} -> {after.get(key, 'not set')}"
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key)
    ]
