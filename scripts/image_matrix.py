"""Holds everything that reads images against the true pixels of files of every dialect: equal, told, or refused.

    python scripts/image_matrix.py                # all dialects, some minutes
    python scripts/image_matrix.py --every 20     # one in 20
    python scripts/image_matrix.py --list         # and a line for each dialect

Files are written by Pillow, tifffile, OpenCV, imageio and by hand (scripts/dialects) and given to the start-up check,
a dataset as train.py builds it, test.py, check_dataset.py, create_lmdb.py, extract_subimages.py, generate_lr.py and
upscale.py. 'told' is upscale.py's: it shows the first frame of an animation, or CMYK in RGB, and says so. Anything else
than the true pixels, without a refusal, is a silent difference, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import runpy
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "scripts/data"), str(ROOT / "tests")]

from basicsr.engine.process.command import quiet_start, run_command

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

import cv2
import numpy as np
from dialects import all_dialects
from dialects.base import Dialect

EQUAL, TOLD, REFUSED, SILENT, MISSED = "equal", "told", "refused", "SILENT", "MISSED"
READERS = (
    *("start-up check", "train", "test.py", "check_dataset", "create_lmdb", "extract_subimages", "generate_lr"),
    "upscale",
)
_SIDE, _STEP = 32, 16

Row = dict[str, str]


def rgb(path: Path) -> np.ndarray:
    """An image that our commands wrote as PNG, (H, W, 3) RGB, by OpenCV."""
    img = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    assert img is not None, path
    return img[..., ::-1]


def judge(found: np.ndarray, truth: np.ndarray | None, lossy: bool) -> str:
    """What to say of pixels that were read."""
    if truth is None or found.shape != truth.shape or found.dtype != truth.dtype:
        return SILENT
    apart = np.abs(found.astype(np.int64) - truth).max()
    return EQUAL if apart <= (2 if lossy else 0) else SILENT


def repeated(pixels: np.ndarray) -> np.ndarray:
    """Twice as large, as the network used here makes it."""
    return pixels.repeat(2, axis=0).repeat(2, axis=1)


def command(script: str, *arguments: object) -> tuple[int, str]:
    """Runs a script in this process; its exit code and what it said."""
    said = io.StringIO()
    before = sys.argv
    sys.argv = [str(ROOT / script), *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0), said.getvalue()
    finally:
        sys.argv = before
    return 0, said.getvalue()


class Matrix:
    """One run over some dialects.

    Args:
        folder: an empty one.
        dialects: which.
    """

    def __init__(self, folder: Path, dialects: Sequence[Dialect]) -> None:
        self.folder = folder
        self.dialects = {f"{number:03d}": dialect for number, dialect in enumerate(dialects)}
        self.rows: dict[str, Row] = {stem: {} for stem in self.dialects}
        self._write("all", self.dialects)

    def run(self) -> None:
        """Fills `rows`."""
        self.start_and_train()
        self.check_dataset()
        readable = [stem for stem, row in self.rows.items() if row["train"] != REFUSED]
        self._write("readable", readable)
        if readable:
            self._write_large(readable)
            self.test(readable)
            self.create_lmdb(readable)
            self.extract_subimages(readable)
            self.generate_lr(readable)
        unreadable = [stem for stem in self.rows if stem not in readable]
        for stem in unreadable:
            self._refuse(stem)
        self._refuse_in_test(unreadable)
        self.upscale()

    def start_and_train(self) -> None:
        """The check of headers before a run, and samples as train.py and test.py load them."""
        from basicsr.config.schema import DatasetOptions
        from basicsr.data import build_dataset
        from basicsr.data.checks.checking import check_images
        from basicsr.utils.errors import DataError

        folder = str(self.folder / "all")
        block: dict[str, Any] = {"type": "PairedImageDataset", "dataroot_gt": folder, "dataroot_lq": folder}
        block |= {"io_backend": {"type": "disk"}, "scale": 1, "phase": "val"}
        options = DatasetOptions.model_validate({**block, "name": "all"})
        dataset: Any = build_dataset(block)
        bad = {Path(image.path).stem for image in check_images(dataset, options)}
        for index, stem in enumerate(self.rows):
            dialect, row = self.dialects[stem], self.rows[stem]
            try:
                sample = dataset[index]
            except DataError:
                row["train"] = REFUSED
            else:
                scale = 255 if dialect.truth is None or dialect.truth.dtype == np.uint8 else 65535
                found = (sample["gt"].numpy().transpose(1, 2, 0) * scale).round().astype(f"u{1 if scale == 255 else 2}")
                assert bool((sample["gt"] == sample["lq"]).all())
                row["train"] = judge(found, dialect.truth, dialect.lossy)
            # Damage amid compressed pixels shows when they are decoded; all else must show in the header.
            late = row["train"] == REFUSED and not dialect.damaged
            row["start-up check"] = REFUSED if stem in bad else MISSED if late else EQUAL

    def check_dataset(self) -> None:
        """`check_dataset.py --decode` over all."""
        module = importlib.import_module("check_dataset")
        pairing = module.Pairing(self.folder / "all", self.folder / "all", 1, "{}", True)
        for stem, row in self.rows.items():
            path = str(self._path("all", stem))
            problem = module.check_pair({"gt_path": path, "lq_path": path}, pairing, decode=True, compare=False)
            row["check_dataset"] = REFUSED if problem else EQUAL if row["train"] == EQUAL else SILENT

    def test(self, stems: Iterable[str]) -> None:
        """test.py with a network that repeats pixels: HR is what comes out where LR is read rightly."""
        results = self._evaluate("large", "readable")
        evaluation = results.scales[0].rows[0].evaluations["LR"]
        figures = dict(zip(evaluation.images, evaluation.values[:, 0], strict=True))
        for stem in stems:
            dialect = self.dialects[stem]
            exact = figures[stem] > (45 if dialect.lossy else 1000)
            self.rows[stem]["test.py"] = EQUAL if exact and dialect.truth is not None else SILENT

    def _evaluate(self, hr: str, lr: str) -> Any:
        """The results of test.py over two folders, in this process."""
        from support.networks import nearest_edsr, save_checkpoint

        from basicsr.test import test_pipeline

        network, block = nearest_edsr(2)
        save_checkpoint(self.folder / "x2.pth", network, block, 2)
        dataset = {"type": "PairedImageDataset", "name": "LR", "io_backend": {"type": "disk"}}
        roots = {"dataroot_gt": str(self.folder / hr), "dataroot_lq": str(self.folder / lr)}
        row = {"network": block, "path": str(self.folder / "x2.pth")}
        options = {
            **{"name": "matrix", "scale": 2, "num_gpu": 0, "datasets": {"test": {**dataset, **roots}}},
            **{"networks": {"nearest": row}, "report": {"plots": False, "html": False}},
            "val": {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}}},
        }
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return test_pipeline(options, root=self.folder)

    def _refuse_in_test(self, stems: Iterable[str]) -> None:
        """test.py over what is not readable: its check before a run names all but what only decoding shows."""
        from basicsr.utils.errors import DataError

        for folder, chosen in (("headers", False), ("damaged", True)):
            some = [stem for stem in stems if self.dialects[stem].damaged is chosen]
            self._write(f"unreadable {folder}", some)
            try:
                if some:
                    self._evaluate(f"unreadable {folder}", f"unreadable {folder}")
                verdict = SILENT
            except DataError as error:
                told = chosen or str(error).startswith(
                    f"{len(some)} of {len(some)} images of dataset LR cannot be used"
                )
                verdict = REFUSED if told else SILENT
            for stem in some:
                self.rows[stem]["test.py"] = verdict

    def create_lmdb(self, stems: Iterable[str]) -> None:
        """create_lmdb.py, and what lies in the database."""
        from basicsr.utils import FileClient

        database = self.folder / "all.lmdb"
        arguments = ("--input", self.folder / "readable", "--output", database, "--workers", 2)
        code, said = command("scripts/data/create_lmdb.py", *arguments)
        assert code == 0, said
        client = FileClient("lmdb", db_paths=str(database))
        for stem in stems:
            content = np.frombuffer(client.get(stem), np.uint8)
            img = cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
            assert img is not None
            self._set(stem, "create_lmdb", img[..., ::-1])

    def extract_subimages(self, stems: Iterable[str]) -> None:
        """extract_subimages.py, and each of its squares."""
        squares = self.folder / "squares"
        sizes = ("--crop-size", _SIDE, "--step", _STEP, "--workers", 2)
        arguments = ("--input", self.folder / "readable", "--output", squares, *sizes)
        code, said = command("scripts/data/extract_subimages.py", *arguments)
        assert code == 0, said
        for stem in stems:
            dialect = self.dialects[stem]
            verdicts = {SILENT} if dialect.truth is None else set()
            if dialect.truth is not None:
                height, width = dialect.truth.shape[:2]
                corners = [
                    (top, left)
                    for top in range(0, height - _SIDE + 1, _STEP)
                    for left in range(0, width - _SIDE + 1, _STEP)
                ]
                for number, (top, left) in enumerate(corners, start=1):
                    found = rgb(squares / f"{stem}_s{number:03d}.png")
                    truth = dialect.truth[top : top + _SIDE, left : left + _SIDE]
                    verdicts.add(judge(found, truth, dialect.lossy))
            self.rows[stem]["extract_subimages"] = EQUAL if verdicts == {EQUAL} else SILENT

    def generate_lr(self, stems: Iterable[str]) -> None:
        """generate_lr.py, held against the bicubic of the true pixels."""
        from basicsr.utils.matlab_functions import imresize_integer

        arguments = ("--input", self.folder / "readable", "--output", self.folder / "lr", "--scales", 2, "--workers", 2)
        code, said = command("scripts/data/generate_lr.py", *arguments)
        assert code == 0, said
        for stem in stems:
            truth = self.dialects[stem].truth
            expected = None if truth is None else imresize_integer(truth, 1 / 2, "each_pass")
            found = rgb(self.folder / f"lr/X2/{stem}x2.png")
            self.rows[stem]["generate_lr"] = judge(found, expected, self.dialects[stem].lossy)

    def upscale(self) -> None:
        """upscale.py over all, by the same network."""
        from support.networks import nearest_edsr, save_checkpoint

        save_checkpoint(self.folder / "x2.pth", *nearest_edsr(2), 2)
        os.chdir(self.folder)
        arguments = ("all", "--model", "x2.pth", "--output", "upscaled", "--device", "cpu")
        _, said = command("scripts/upscale.py", *arguments)
        lines = said.splitlines()
        for stem, dialect in self.dialects.items():
            name = f"all/{stem}{dialect.ending}"
            [line] = [line for line in lines if name in line]
            if line.startswith("error: "):
                verdict = REFUSED
            elif "only the first of its" in line or "CMYK converted" in line:
                verdict = TOLD
            else:
                truth = None if dialect.shown is None else repeated(dialect.shown)
                found = rgb(self.folder / f"upscaled/{stem}_x2.png").copy()
                if dialect.hidden is not None and truth is not None and found.shape == truth.shape:
                    mask = repeated(dialect.hidden)
                    found[mask] = truth[mask]
                verdict = judge(found, truth, dialect.lossy)
            self.rows[stem]["upscale"] = verdict

    def _refuse(self, stem: str) -> None:
        """Gives a file that is not readable alone to the commands that read whole folders."""
        self._write(f"alone/{stem}", [stem])
        source, results = self.folder / "alone" / stem, self.folder / "of_alone" / stem
        jobs: Mapping[str, tuple[str, tuple[object, ...]]] = {
            "create_lmdb": ("scripts/data/create_lmdb.py", ("--output", results / "x.lmdb")),
            "extract_subimages": (
                "scripts/data/extract_subimages.py",
                ("--output", results / "squares", "--crop-size", _SIDE, "--step", _STEP),
            ),
            "generate_lr": ("scripts/data/generate_lr.py", ("--output", results / "lr", "--scales", 2)),
        }
        for name, (script, arguments) in jobs.items():
            code, said = command(script, "--input", source, *arguments, "--workers", 1)
            refused = code == 3 and f"{stem}{self.dialects[stem].ending}" in said
            self.rows[stem][name] = REFUSED if refused else SILENT

    def _set(self, stem: str, reader: str, found: np.ndarray) -> None:
        self.rows[stem][reader] = judge(found, self.dialects[stem].truth, self.dialects[stem].lossy)

    def _path(self, below: str, stem: str) -> Path:
        return self.folder / below / f"{stem}{self.dialects[stem].ending}"

    def _write(self, below: str, stems: Iterable[str]) -> None:
        (self.folder / below).mkdir(parents=True, exist_ok=True)
        for stem in stems:
            self._path(below, stem).write_bytes(self.dialects[stem].content)

    def _write_large(self, stems: Iterable[str]) -> None:
        """HR images of twice the true pixels, as PNG; of files without truth, of black."""
        (self.folder / "large").mkdir()
        for stem in stems:
            truth = self.dialects[stem].truth
            if truth is None:
                from basicsr.utils import imfrombytes

                truth = np.zeros_like(imfrombytes(self.dialects[stem].content))
            cv2.imwrite(str(self.folder / f"large/{stem}.png"), np.ascontiguousarray(repeated(truth)[..., ::-1]))


def table(rows: Iterable[tuple[str, Row]], key: Callable[[str], str]) -> list[str]:
    """Counts by group and reader, as lines."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for name, row in rows:
        group = counts.setdefault(key(name), {reader: Counter() for reader in READERS})
        for reader, verdict in row.items():
            group[reader][verdict] += 1
    kinds = (EQUAL, TOLD, REFUSED, SILENT, MISSED)
    lines = [f"{'':10}" + "".join(f"{reader:>20}" for reader in READERS), f"(counts of {' / '.join(kinds)})"]
    for name, group in counts.items():
        cells = ("/".join(str(group[reader][kind]) for kind in kinds) for reader in READERS)
        lines.append(f"{name:10}" + "".join(f"{cell:>20}" for cell in cells))
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th dialect (default: 1)")
    parser.add_argument("--list", action="store_true", help="print a line for each dialect, too")
    options = parser.parse_args(argv)
    dialects = list(all_dialects())[:: options.every]
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BASICSR_CACHE"] = str(Path(folder) / "cache")
        matrix = Matrix(Path(folder).resolve(), dialects)
        try:
            matrix.run()
        finally:
            os.chdir(here)
    rows = [(matrix.dialects[stem].name, matrix.rows[stem]) for stem in matrix.rows]
    kinds = {matrix.dialects[stem].name: matrix.dialects[stem].ending[1:5].upper() for stem in matrix.rows}
    for name, row in rows:
        wrong = {SILENT, MISSED} & set(row.values())
        if options.list or wrong:
            print(f"{name:55} " + ", ".join(f"{reader} {row[reader]}" for reader in READERS))
    print("\n".join(table(rows, lambda name: kinds[name])))
    total = Counter(verdict for _, row in rows for verdict in row.values())
    counted = ", ".join(f"{total[kind]} {kind}" for kind in (EQUAL, TOLD, REFUSED, SILENT, MISSED))
    print(f"{len(rows)} dialects, {sum(total.values())} cells: {counted}")
    return 1 if total[SILENT] or total[MISSED] else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
