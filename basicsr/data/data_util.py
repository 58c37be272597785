"""Lists of images and of pairs of images, strict about what is missing, and what else lies in their folders.

Functions named as in BasicSR have its signatures.

Pairs are dicts such as {'lq_path': ..., 'gt_path': ...}, in the order of the HR images' names.

Meta info files may come from strangers; what they name must lie below the dataset's folder:

* No name is absolute or has a part `..`, in the manner of POSIX or Windows, and none has control characters.
* The dataset's folder may itself be a symbolic link, and so may each image that lies in it directly, as on clusters:
  a plain listing of the folder shows the same images, so a file that names them adds nothing.
* In folders below, which no listing enters, a name must still lie below the dataset's folder once all links are
  followed. Otherwise a file could reach, through one forgotten link, all that lies behind it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence

from basicsr.files.images import IMAGE_SUFFIXES
from basicsr.files.lmdb_databases import find_database_damage, read_meta_info
from basicsr.files.regular_files import leaves_folder, read_lines
from basicsr.utils.errors import AssertedDataError, DataError, OptionsError
from basicsr.utils.misc import entries_of, is_folder, scandir
from basicsr.utils.text import printable

_NAMED = 3
_COUNTED_AT_MOST = 10_000
_LIKE_IMAGE = re.compile(
    r"\.(jfif|jpe|jp2|j2k|jxl|avif|hei[cf]|gif|apng|p[gbnf]m|exr|hdr|dng|cr2|nef|arw|raw|tga|pcx|dds|svg|psd|fits|dcm"
    r"|npy)\Z"
)
_MAC_NOTES = "._"

# Names of the sets that papers use, by their number of images.
_SETS = {
    5: "Set5",
    14: "Set14",
    18: "McMaster",
    24: "Kodak24",
    68: "BSD68 CBSD68",
    91: "T91",
    100: "BSD100 B100 BSDS100 Urban100 General100 Rain100L Rain100H DIV2K_valid DIV2K_val DIV2K_valid_HR DIV2K100",
    109: "Manga109",
    800: "DIV2K_train DIV2K_train_HR DIV2K800",
    1200: "Test1200",
    2650: "Flickr2K Flickr2K_HR",
    2800: "Test2800",
    3450: "DF2K DF2K_HR",
}
_KNOWN_SETS = {name.lower().replace("_", ""): (name, count) for count, names in _SETS.items() for name in names.split()}
# Folders whose parent, or a folder above that, has the set's name.
_PARTS = re.compile(
    r"(hr|gt|gt_?mod\d*|original|lr|lr_?bicubic|lr_?bic(ubic)?_?x?\d*|bicubic|x\d+|image_srf_\d+|input|target|lq|hq)"
)

_WITH_SHAPE = re.compile(r"(?P<name>.*\S) +\([0-9]+, ?[0-9]+(, ?[0-9]+)?\)( .*)?")


def paths_from_folder(folder: str) -> list[str]:
    """Paths of a folder's images in the order of their names, not of folders below; raises DataError if none."""
    return [os.path.join(folder, name) for name in _image_names(folder)]


def paths_from_lmdb(folder: str) -> list[str]:
    """The keys of an LMDB database, sorted; raises DataError where it is missing, empty or damaged."""
    return list(_keys_of(folder))


def paths_from_meta_info_file(folder: str, meta_info_file: str) -> list[str]:
    """Paths of the images that a file names, one to a line, relative to `folder`; `(h,w,c)` after a name is left out.

    Raises DataError: the file is missing, empty or no text, a path leaves `folder`, or an image does not exist.
    """
    paths = [os.path.join(folder, name) for name in _names_of(meta_info_file, folder)]
    _check_exist(paths, meta_info_file)
    return paths


def paired_paths_from_folder(folders: Sequence[str], keys: Sequence[str], filename_tmpl: str) -> list[dict[str, str]]:
    """Pairs the images of an LR and an HR folder, which `keys` names, such as ['lq', 'gt'].

    The LR image of `NAME.png` is `filename_tmpl.format(NAME)`, such as '{}x2', with the same ending or another. Raises
    DataError: a folder is missing or empty, an image has no partner or several; OptionsError: as `check_template`.
    """
    (input_folder, gt_folder), (input_key, gt_key) = folders, keys
    check_template(filename_tmpl)
    gt_by_stem = images_by_stem(gt_folder)
    input_by_stem = images_by_stem(input_folder)
    expected = {stem: filename_tmpl.format(stem) for stem in gt_by_stem}
    lonely = [stem for stem, wanted in expected.items() if wanted not in input_by_stem]
    if lonely:
        raise AssertedDataError(
            f"{gt_folder} has {some([gt_by_stem[stem] for stem in lonely])} without a partner such as"
            f" {printable(expected[lonely[0]])}.png in {input_folder};"
            f" {_about_partners(lonely, expected, input_by_stem)}"
        )
    unused = sorted(input_by_stem.keys() - set(expected.values()))
    if unused:
        names = some([input_by_stem[stem] for stem in unused])
        raise AssertedDataError(
            f"{input_folder} has {names} without a partner in {gt_folder} (filename_tmpl "
            f"is '{filename_tmpl}'); add the missing images or remove these"
        )
    return [
        {
            f"{input_key}_path": os.path.join(input_folder, input_by_stem[expected[stem]]),
            f"{gt_key}_path": os.path.join(gt_folder, name),
        }
        for stem, name in gt_by_stem.items()
    ]


def paired_paths_from_meta_info_file(
    folders: Sequence[str], keys: Sequence[str], meta_info_file: str, filename_tmpl: str
) -> list[dict[str, str]]:
    """As `paired_paths_from_folder`, of the HR images that a file names: `0001_s001.png (480,480,3)` to a line.

    As in BasicSR, the LR image lies in the LR folder itself and has the HR image's ending. Raises DataError as
    `paths_from_meta_info_file`, and where two HR images share an LR image; OptionsError: as `check_template`.
    """
    (input_folder, gt_folder), (input_key, gt_key) = folders, keys
    check_template(filename_tmpl)
    pairs: list[dict[str, str]] = []
    seen: dict[str, str] = {}
    for gt_name in _names_of(meta_info_file, gt_folder):
        stem, ending = os.path.splitext(os.path.basename(gt_name))
        input_path = os.path.join(input_folder, f"{filename_tmpl.format(stem)}{ending}")
        if input_path in seen:
            raise DataError(
                f"{meta_info_file} pairs {printable(f'{seen[input_path]} and {gt_name} with {input_path}')};"
                " name each once"
            )
        seen[input_path] = gt_name
        pairs.append({f"{input_key}_path": input_path, f"{gt_key}_path": os.path.join(gt_folder, gt_name)})
    _check_exist((path for pair in pairs for path in pair.values()), meta_info_file)
    return pairs


def paired_paths_from_lmdb(folders: Sequence[str], keys: Sequence[str]) -> list[dict[str, str]]:
    """Pairs the images of an LR and an HR database; raises DataError unless both have the same keys."""
    (input_folder, gt_folder), (input_key, gt_key) = folders, keys
    keys_in = {folder: _keys_of(folder) for folder in folders}
    for folder, partner in ((gt_folder, input_folder), (input_folder, gt_folder)):
        if lonely := [key for key in keys_in[folder] if key not in keys_in[partner]]:
            raise DataError(
                f"{folder} has {some(lonely)} without a partner in {partner}; create both with the same "
                "keys (scripts/data/create_lmdb.py --strip-suffix)"
            )
    return [{f"{input_key}_path": key, f"{gt_key}_path": key} for key in keys_in[gt_folder]]


def images_by_stem(folder: str) -> dict[str, str]:
    """A folder's images by their names without ending, in order; raises DataError where two of these are equal."""
    by_stem: dict[str, str] = {}
    for name in _image_names(folder):
        stem = os.path.splitext(name)[0]
        if stem in by_stem:
            raise DataError(f"{folder} has both {printable(f'{by_stem[stem]} and {name}')}; remove one")
        by_stem[stem] = name
    return by_stem


def check_template(filename_tmpl: str) -> None:
    """Raises OptionsError unless `filename_tmpl` holds {} once, and no other brace."""
    if filename_tmpl.count("{}") != 1 or filename_tmpl.count("{") + filename_tmpl.count("}") != 2:
        raise OptionsError(f"filename_tmpl must hold {{}} once, such as '{{}}x2', got '{filename_tmpl}'")


def _about_partners(lonely: Sequence[str], expected: Mapping[str, str], there: Mapping[str, str]) -> str:
    """What to change where HR images have no partner."""
    alike = {stem.casefold(): name for stem, name in there.items()}
    if found := alike.get(expected[lonely[0]].casefold()):
        return f"{printable(found)} is written otherwise (upper and lower case count); rename one"
    if len(lonely) == len(expected):  # one wrong setting, not single missing files
        found = next(iter(there.values()))
        for stem in expected:
            rest = os.path.splitext(found)[0].removeprefix(stem)
            if os.path.splitext(found)[0].startswith(stem) and not set("{}") & set(rest):
                return f"names there look like {printable(found)}: set filename_tmpl: '{{}}{printable(rest)}'"
        return f"names there look like {printable(found)}; change filename_tmpl or the folder"
    return "add the missing images or change filename_tmpl"


def _image_names(folder: str) -> list[str]:
    """The names of a folder's entries that look like images, whether or not they can be read: none must vanish."""
    names = [entry.name for entry in entries_of(folder) if _is_image(entry.name) and not entry.name.startswith(".")]
    if not names:
        others = "; ".join(folder_warnings(folder))
        raise DataError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}); {others or 'check the path'}")
    return names


def _keys_of(folder: str) -> dict[str, tuple[int, int, int]]:
    """As `read_meta_info`; also looks at the database's pages, of which a damaged one could end the process."""
    keys = read_meta_info(folder)
    pages = os.path.join(folder, "data.mdb")
    if os.path.isfile(pages) and (damage := find_database_damage(pages, pages=True)):
        raise DataError(f"cannot open LMDB database {folder}: {damage}; copy it again, or create it again")
    return keys


def _names_of(meta_info_file: str, folder: str) -> list[str]:
    """The images that a file names, all of which lie below a folder."""
    names = [_named(line, number, meta_info_file) for number, line in read_lines(meta_info_file, "meta_info_file")]
    if not names:
        raise DataError(f"meta_info_file {meta_info_file} names no image")
    root = os.path.realpath(folder)
    inside: dict[str, bool] = {}

    def is_inside(path: str) -> bool:
        return os.path.commonpath([root, os.path.realpath(path)]) == root

    for name in names:
        if leaves_folder(name):
            raise DataError(
                f"meta_info_file {meta_info_file} names {printable(name[:200])}, which is not below the dataset's"
                " folder; write paths relative to it, without '..'"
            )
        below = os.path.dirname(os.path.normpath(name))
        if not below:
            continue
        if below not in inside:
            inside[below] = is_inside(os.path.join(folder, below))
        path = os.path.join(folder, name)
        if not inside[below] or (os.path.islink(path) and not is_inside(path)):
            raise DataError(
                f"meta_info_file {meta_info_file} names {printable(name)}, which leads out of {folder} through a"
                " symbolic link; name the folder behind the link as dataroot, or put the images there"
            )
    return names


def _named(line: str, number: int, meta_info_file: str) -> str:
    """The image that a line names: before `(h,w,c)`, else the line, or its first word if an image, as in BasicSR."""
    if shaped := _WITH_SHAPE.fullmatch(line):
        return shaped["name"]
    first, _, rest = line.partition(" ")
    if not rest or not first.lower().endswith(IMAGE_SUFFIXES):
        return line
    if line.lower().endswith(IMAGE_SUFFIXES):
        raise DataError(
            f"line {number} of meta_info_file {meta_info_file} may name one image with blanks or two:"
            f" {printable(line[:200])}; write one to a line, a name with blanks as 'NAME (height,width,channels)'"
        )
    return first


def _check_exist(paths: Iterable[str], meta_info_file: str) -> None:
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise DataError(
            f"meta_info_file {meta_info_file} names {some(missing)} that do not exist or are no files; check the"
            " folders"
        )


def some(names: Sequence[str], what: str = "image") -> str:
    """`2 images (a.png, b.png)`; of many, the first few."""
    return f"{len(names):,d} {what}{'s' if len(names) > 1 else ''} ({first_few(names)})"


def first_few(names: Sequence[str]) -> str:
    """`a.png, b.png, c.png, ...`."""
    return printable(", ".join(names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")


def folder_warnings(folder: str, *, recursive: bool = False) -> Iterator[str]:
    """Warns about files in a folder that are not used; with `recursive`, in the folders below too."""
    entries = entries_of(folder)
    folders = [entry for entry in entries if not _is_image(entry.name) and is_folder(entry)]
    below = {entry.name: count for entry in folders if (count := count_images(entry.path)) != 0}
    if recursive:
        for entry in folders:
            if entry.name in below and not entry.is_symlink():
                yield from (f"{entry.name}: {sentence}" for sentence in folder_warnings(entry.path, recursive=True))
    elif below:
        counts = [f"{name}: {'cannot be read' if count is None else f'{count:,d}'}" for name, count in below.items()]
        yield (
            f"{some(counts, 'folder')} in it, with images, not read; name one of them instead, or bring the images of"
            f" all into one by: python scripts/data/generate_lr.py --recursive --input {shlex.quote(folder)} --output"
            " NEW_LR --hr-output NEW_HR --scales SCALE"
        )
    names = [entry.name for entry in entries if entry not in folders]
    if others := [name for name in names if looks_like_image(name)]:
        yield (
            f"{some(others, 'file')} in it not read, because of the ending; convert to PNG, or rename what is one of"
            f" {', '.join(IMAGE_SUFFIXES)}"
        )
    hidden = [name for name in names if name.startswith(".") and _is_image(name)]
    there = set(names)
    if hidden := [name for name in hidden if (of := name.removeprefix(_MAC_NOTES)) == name or of not in there]:
        yield f"{some(hidden, 'hidden file')} in it not read; rename what belongs to the images"
    seen: dict[str, str] = {}
    alike = []
    for name in names:
        if _is_image(name) and not name.startswith("."):
            first = seen.setdefault(os.path.splitext(name)[0].casefold(), name)
            if first is not name:
                alike.append(f"{first} and {name}")
    if alike:
        yield (
            f"names that differ in upper and lower case or ending only ({first_few(alike)}); remove what is there twice"
        )


def count_mismatch(name: str, number: int) -> str | None:
    """A warning where a set of this name has another number of images than the known one; else None."""
    known = _KNOWN_SETS.get(re.sub(r"[^a-z0-9]|[ _.-]?x[2-8]\Z", "", name.lower()))
    if known is None or known[1] == number:
        return None
    return f"{number:,d} image{'s' if number != 1 else ''} here, {known[0]} has {known[1]:,d}: figures are not its own"


def set_name(root: str) -> str:
    """The name of the set whose images a folder holds: the last part of the path that is not HR, LR_bicubic, X2 ..."""
    parts = os.path.abspath(root).removesuffix(".lmdb").split(os.sep)
    return next((part for part in reversed(parts) if not _PARTS.fullmatch(part.lower())), "")


def looks_like_image(name: str) -> bool:
    """Whether a file that is not read may be an image: by its ending, or because it has none."""
    return not name.startswith(".") and ("." not in name or _LIKE_IMAGE.search(name.lower()) is not None)


def count_images(folder: str) -> int | None:
    """Images in a folder and those below it; None where one cannot be read."""
    try:
        return sum(1 for _, _ in zip(range(_COUNTED_AT_MOST), scandir(folder, IMAGE_SUFFIXES, True), strict=False))
    except DataError:
        return None


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)
