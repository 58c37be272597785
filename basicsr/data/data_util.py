"""Lists of images and of pairs of images, strict about what is missing, and what else lies in their folders.

Functions named as in BasicSR have its signatures. What they call a folder is read with the folders below it, and may be
a pattern (basicsr/files/image_folders.py).

Pairs are dicts such as {'lq_path': ..., 'gt_path': ...}, in the order of the HR images' names. HR and LR belong
together by their names relative to their folders.

Meta info files may come from strangers; what they name must lie below the dataset's folder:

* No name is absolute or has a part `..`, in the manner of POSIX or Windows, and none has control characters.
* The dataset's folder may itself be a symbolic link, and so may each image that lies in it directly, as on clusters:
  a plain listing of the folder shows the same images, so a file that names them adds nothing.
* In folders below, a name must still lie below the dataset's folder once all links are followed. Otherwise a file could
  reach, through one forgotten link, all that lies behind it, whatever its ending.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from basicsr.files.image_folders import HIDDEN, IMAGE_SUFFIXES, MADE, ImageTree, Pattern, is_pattern, read_tree
from basicsr.files.lmdb_databases import find_database_damage, read_meta_info
from basicsr.files.regular_files import leaves_folder, read_lines
from basicsr.utils.errors import AssertedDataError, DataError, OptionsError
from basicsr.utils.misc import scandir
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


class NamedImage(NamedTuple):
    """An image of a folder: its name there, with its ending, and its path."""

    name: str
    path: str


def images_in(folder: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[NamedImage]:
    """The images of a folder and of those below, in the order of their names; raises DataError if there are none.

    They are told by their endings, whether or not they can be read: none must vanish.
    """
    if is_pattern(folder):
        return [NamedImage(*found) for found in Pattern(folder, suffixes).images()]
    tree = read_tree(folder, suffixes=suffixes)
    if not tree.images:
        others = "; ".join(_warnings(folder, tree))
        raise DataError(f"{folder} holds no image ({', '.join(suffixes)}); {others or 'check the path'}")
    before = os.path.join(folder, "")
    return [NamedImage(name, f"{before}{name}") for name in tree.images]


def paths_from_folder(folder: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """Paths of a folder's images in the order of their names; raises DataError if there are none."""
    return [image.path for image in images_in(folder, suffixes)]


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


def paired_paths_from_folder(
    folders: Sequence[str], keys: Sequence[str], filename_tmpl: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> list[dict[str, str]]:
    """Pairs the images of an LR and an HR folder, which `keys` names, such as ['lq', 'gt'].

    The LR image of `NAME.png` is `filename_tmpl.format(NAME)`, such as '{}x2', with the same ending or another. Raises
    DataError: a folder is missing or empty, an image has no partner or several; OptionsError: as `check_template`.
    """
    (input_folder, gt_folder), (input_key, gt_key) = folders, keys
    check_template(filename_tmpl)
    gt_by_stem = images_by_stem(gt_folder, suffixes)
    input_by_stem = images_by_stem(input_folder, suffixes)
    expected = {stem: partner_of(stem, filename_tmpl) for stem in gt_by_stem}
    lonely = [stem for stem, wanted in expected.items() if wanted not in input_by_stem]
    if lonely:
        raise AssertedDataError(
            f"{gt_folder} has {some([gt_by_stem[stem].name for stem in lonely])} without a partner such as"
            f" {printable(expected[lonely[0]])}.png in {input_folder};"
            f" {_about_partners(gt_folder, lonely, expected, input_by_stem)}"
        )
    unused = sorted(input_by_stem.keys() - set(expected.values()))
    if unused:
        names = some([input_by_stem[stem].name for stem in unused])
        raise AssertedDataError(
            f"{input_folder} has {names} without a partner in {gt_folder} (filename_tmpl "
            f"is '{filename_tmpl}'); add the missing images or remove these"
        )
    return [
        {f"{input_key}_path": input_by_stem[expected[stem]].path, f"{gt_key}_path": image.path}
        for stem, image in gt_by_stem.items()
    ]


def paired_paths_from_meta_info_file(
    folders: Sequence[str], keys: Sequence[str], meta_info_file: str, filename_tmpl: str
) -> list[dict[str, str]]:
    """As `paired_paths_from_folder`, of the HR images that a file names: `0001_s001.png (480,480,3)` to a line.

    The LR image has the HR image's ending, or stands behind it: `0001.png, 0001x4.jpg`. Of an HR image in a folder
    below, it lies in a folder of this name in the LR folder, or else, as in BasicSR, in the LR folder itself. Raises
    DataError as `paths_from_meta_info_file`, and where two HR images share an LR image; OptionsError: as
    `check_template`.
    """
    (input_folder, gt_folder), (input_key, gt_key) = folders, keys
    check_template(filename_tmpl)
    pairs: list[dict[str, str]] = []
    seen: dict[str, str] = {}
    check_inside = _InsideOnly(meta_info_file, input_folder)
    named = list(_named_pairs(meta_info_file))
    _checked([gt_name for gt_name, _ in named], meta_info_file, gt_folder)
    for gt_name, given in named:
        stem, ending = os.path.splitext(gt_name)
        input_name = f"{partner_of(stem, filename_tmpl)}{ending}"
        if given is not None:
            (input_name,) = _checked([given], meta_info_file, input_folder)
        elif os.path.isfile(os.path.join(input_folder, input_name)):
            check_inside(input_name)
        else:
            input_name = os.path.basename(input_name)
        input_path = os.path.join(input_folder, input_name)
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


def images_by_stem(folder: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, NamedImage]:
    """A folder's images by their names without ending, in order; raises DataError where two of these are equal."""
    by_stem: dict[str, NamedImage] = {}
    for image in images_in(folder, suffixes):
        stem = os.path.splitext(image.name)[0]
        if stem in by_stem:
            raise DataError(f"{folder} has both {printable(f'{by_stem[stem].name} and {image.name}')}; remove one")
        by_stem[stem] = image
    return by_stem


def partner_of(stem: str, filename_tmpl: str) -> str:
    """The name without ending of an HR image's LR image: the template is that of the last part."""
    head, separator, last = stem.rpartition(os.sep)
    return f"{head}{separator}{filename_tmpl.format(last)}"


def check_template(filename_tmpl: str) -> None:
    """Raises OptionsError unless `filename_tmpl` holds {} once, and no other brace."""
    if filename_tmpl.count("{}") != 1 or filename_tmpl.count("{") + filename_tmpl.count("}") != 2:
        raise OptionsError(f"filename_tmpl must hold {{}} once, such as '{{}}x2', got '{filename_tmpl}'")


def _about_partners(
    folder: str, lonely: Sequence[str], expected: Mapping[str, str], there: Mapping[str, NamedImage]
) -> str:
    """What to change where HR images of a folder have no partner."""
    alike = {stem.casefold(): image.name for stem, image in there.items()}
    if found := alike.get(expected[lonely[0]].casefold()):
        return f"{printable(found)} is written otherwise (upper and lower case count); rename one"
    if len(lonely) == len(expected):  # one wrong setting, not single missing files
        found = next(iter(there.values())).name
        for stem in expected:
            rest = os.path.splitext(found)[0].removeprefix(stem)
            if os.path.splitext(found)[0].startswith(stem) and not set("{}") & set(rest):
                return f"names there look like {printable(found)}: set filename_tmpl: '{{}}{printable(rest)}'"
        return f"names there look like {printable(found)}; change filename_tmpl or the folder"
    if not is_pattern(folder) and all(os.sep in stem for stem in lonely):
        return f"add the missing images, or leave out folders below by a pattern such as {folder}/*.png"
    return "add the missing images or change filename_tmpl"


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
    return _checked(names, meta_info_file, folder)


def _named_pairs(meta_info_file: str) -> Iterator[tuple[str, str | None]]:
    """The HR images that a file names, each with its LR image where that stands behind a comma."""
    for number, line in read_lines(meta_info_file, "meta_info_file"):
        first, _, second = line.partition(", ")
        if _is_image(first) and _is_image(second):
            yield first, second
        else:
            yield _named(line, number, meta_info_file), None


def _checked(names: list[str], meta_info_file: str, folder: str) -> list[str]:
    """The names, all of which must lie below a folder."""
    if not names:
        raise DataError(f"meta_info_file {meta_info_file} names no image")
    check_inside = _InsideOnly(meta_info_file, folder)
    for name in names:
        if leaves_folder(name):
            raise DataError(
                f"meta_info_file {meta_info_file} names {printable(name[:200])}, which is not below the dataset's"
                " folder; write paths relative to it, without '..'"
            )
        check_inside(name)
    return names


class _InsideOnly:
    """Raises DataError for names in folders below that lie, once links are followed, outside a folder."""

    def __init__(self, meta_info_file: str, folder: str) -> None:
        self._meta_info_file, self._folder = meta_info_file, folder
        self._root = os.path.realpath(folder)
        self._inside: dict[str, bool] = {}

    def __call__(self, name: str) -> None:
        below = os.path.dirname(os.path.normpath(name))
        if not below:
            return
        if below not in self._inside:
            self._inside[below] = self._is_inside(os.path.join(self._folder, below))
        path = os.path.join(self._folder, name)
        if not self._inside[below] or (os.path.islink(path) and not self._is_inside(path)):
            raise DataError(
                f"meta_info_file {self._meta_info_file} names {printable(name)}, which leads out of {self._folder}"
                " through a symbolic link; name the folder behind the link as dataroot, or put the images there"
            )

    def _is_inside(self, path: str) -> bool:
        return os.path.commonpath([self._root, os.path.realpath(path)]) == self._root


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


def folder_warnings(folder: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Iterator[str]:
    """Warns about what a folder and those below it hold beside the images, and where images lie in it and below."""
    yield from _warnings(folder, read_tree(folder, suffixes=suffixes))


def _warnings(folder: str, tree: ImageTree) -> Iterator[str]:
    below = [name for name in tree.images if os.sep in name]
    if below and (own := len(tree.images) - len(below)):
        counts = Counter(name.partition(os.sep)[0] for name in below)
        folders = some([f"{name}: {count:,d}" for name, count in counts.items()], "folder")
        endings = sorted({os.path.splitext(name)[1] for name in tree.images if os.sep not in name})
        patterns = ", ".join(f"{folder}/*{ending}" for ending in endings)
        yield f"{own:,d} in it and {len(below):,d} in {folders} below are used; its own alone by {patterns}"
    for reason in (HIDDEN, MADE):
        left = (name for name, why in tree.left_out if why == reason)
        counted = {name: count for name in left if (count := count_images(os.path.join(folder, name))) != 0}
        if names := [f"{name}: {'?' if count is None else f'{count:,d}'}" for name, count in counted.items()]:
            yield f"{some(names, 'folder')} in it, with images, not read ({reason}); name what is to be used"
    if others := [name for name in tree.others if looks_like_image(os.path.basename(name))]:
        yield (
            f"{some(others, 'file')} in it not read, because of the ending; convert to PNG, or rename what is one of"
            f" {', '.join(IMAGE_SUFFIXES)}"
        )
    hidden = [(head, name) for head, name in map(os.path.split, tree.others) if _is_image(name)]
    there = set(tree.images)
    notes = {(head, name) for head, name in hidden if os.path.join(head, name.removeprefix(_MAC_NOTES)) in there}
    if single := [os.path.join(*parts) for parts in hidden if parts not in notes]:
        yield f"{some(single, 'hidden file')} in it not read; rename what belongs to the images"
    seen: dict[str, str] = {}
    alike = []
    for name in tree.images:
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
