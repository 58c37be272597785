"""Testing: `python basicsr/test.py -opt FILE`. Any number of networks on any number of datasets, at any scales.

Metrics are computed where a dataset has HR images; where it has none, the results are saved as images.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: import the package it lies in, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr.engine.process.stop import Interrupted, StopRequest, quiet_start
from basicsr.utils.process_settings import STOP_SIGNALS, sleep_while_waiting

if __name__ == "__main__":
    quiet_start(STOP_SIGNALS)  # what is imported below takes seconds
    sleep_while_waiting()

import torch
from torch import nn
from tqdm import tqdm

from basicsr.archs import build_network
from basicsr.config.load import load_test_options, parse_arguments
from basicsr.config.schema import Options
from basicsr.config.unused import unused_in_testing
from basicsr.data import build_eval_dataset
from basicsr.engine.logs.run_log import open_log
from basicsr.engine.process.agreement import joined, require_equal
from basicsr.engine.process.command import run_command
from basicsr.engine.process.distributed import Launcher, RankInfo, any_rank, on_master
from basicsr.engine.process.rank_watchdog import following
from basicsr.engine.provenance import digest_of_file
from basicsr.engine.run_folder import prepare_results, results_taken
from basicsr.engine.startup_checks import check_datasets, check_evaluation, evaluation_images, require_equal_images
from basicsr.files.atomic_files import sha256_of
from basicsr.files.images import imwrite
from basicsr.inference.probing import Trial
from basicsr.metrics import better_direction, prepare_metrics
from basicsr.metrics.evaluator import Evaluation, EvaluationDataset, SaveImage, evaluate, image_names
from basicsr.report.comparison import check_regions
from basicsr.report.pictures import SavedPictures
from basicsr.report.results import Results, Row, ScaleResults
from basicsr.report.speed import Latencies, Stopwatch, device_name
from basicsr.report.tables import decimals_of, format_figure, metric_label
from basicsr.report.writing import write_files, write_tables
from basicsr.utils.complexity import count_multiply_adds, count_parameters
from basicsr.utils.errors import DataError, UserError
from basicsr.utils.logger import get_root_logger, log_remark
from basicsr.utils.pass_times import warn_if_slow
from basicsr.utils.precision import keep_output_precise
from basicsr.utils.timing import Spread
from basicsr.weights.recognise import network_for

_INTERRUPTED = "interrupted: the results are incomplete; start again"


def test_pipeline(
    source: str | Path | Mapping[str, Any],
    *,
    launcher: Launcher = "none",
    force_yml: Sequence[str] = (),
    root: str | Path = ".",
) -> Results:
    """Tests what an options file, or the same content as a dict, describes.

    Writes results/NAME: the log, `metrics.csv` with every image, tables, plots, `report.html`, and images where asked
    for.

    Args:
        source: path of the file, or the options themselves.
        launcher: as for training; images are shared among ranks.
        force_yml: changes to the options such as `val:save_img=true`.
        root: the folder of `results`.

    Returns:
        For each scale a row for each network, in the file's order.

    Raises:
        UserError: one of its kinds, for anything that the user can mend.
    """
    doubts: list[str] = []

    def load() -> list[Options]:
        return load_test_options(source, overrides=force_yml, root=Path(root), warn=doubts.append)

    with (
        joined(launcher, load, {}) as (loaded, rank_info),
        following(rank_info.watch),
        results_taken(loaded, rank_info) as own_again,
    ):
        first, stop = loaded[0], StopRequest()
        stopwatch = (
            Stopwatch(first.report.input, rank_info.device) if first.report.speed and rank_info.is_master else None
        )
        scales = [_Scale(options, rank_info, stop, stopwatch, several=len(loaded) > 1) for options in loaded]
        for scale in scales:
            scale.check()
        prepare_metrics(first.val.metrics, rank_info.device)
        prepare_results(loaded, rank_info)
        own_again()
        with open_log(first.results_folder, "test", first.name, rank_info) as logger:
            report = _Report(scales, rank_info, logger)
            for line in filter(None, (rank_info.remark, *doubts, *unused_in_testing(first))):
                logger.warning(line)
            try:
                with (
                    stop,
                    following(rank_info.watch),
                ):  # a signal ends the evaluation on all ranks together, between images
                    for scale in scales:
                        scale.run(report.keep)
                    report.time(stopwatch, stop)
            except BaseException as error:  # figures that are finished are not lost, whatever comes
                report.write_unfinished(error)
                raise
            return report.write()


class _Report:
    """What is written of the figures: tables after each dataset, all else at the end."""

    def __init__(self, scales: Sequence[_Scale], rank_info: RankInfo, logger: logging.Logger) -> None:
        self._options, self._scales, self._place, self._logger = scales[0].options, scales, rank_info, logger
        self._latencies = Latencies()

    def results(self, incomplete: str = "") -> Results:
        """What has been measured so far."""
        return Results(
            name=self._options.name,
            scales=tuple(
                scale.results(self._latencies.spreads) for scale in self._scales if scale.begun or not incomplete
            ),
            device=device_name(self._place.device),
            input_shape=self._options.report.input,
            better={name: better_direction(block) for name, block in self._options.val.metrics.items()},
            incomplete=incomplete,
            latency_doubt=self._latencies.doubt,
            precision=self._options.val.amp,
        )

    def time(self, stopwatch: Stopwatch | None, stop: StopRequest) -> None:
        """Times all networks, once their figures are there; all ranks must call.

        Raises:
            Interrupted: a signal asked for it, on any rank.
        """
        if stopwatch is not None:
            stopwatch.announce(self._logger.info)
        self._latencies = on_master(
            self._place, lambda: stopwatch.measure(lambda: bool(stop)) if stopwatch else Latencies()
        )
        if any_rank([bool(stop)], self._place.device)[0]:
            raise Interrupted(_INTERRUPTED)
        for remark in self._latencies.remarks:
            self._logger.warning(remark)
        if self._latencies.doubt:
            self._logger.warning(
                f"latencies are no figures to quote: {self._latencies.doubt}; they are left out of tables.tex and plots"
            )

    def keep(self) -> None:
        """Writes the tables of all finished figures, in case the test ends early. All ranks must call.

        Raises:
            CheckpointError: they cannot be written; on every rank.
        """
        folder, report = self._options.results_folder, self._options.report
        results = self.results("the test has not come to its end.")
        on_master(self._place, lambda: write_tables(results, folder, report))

    def write(self) -> Results:
        """Writes everything; raises UserError where that is not possible."""
        results = self.results()
        if self._place.is_master:
            pictures = {scale.options.scale: scale.pictures for scale in self._scales if scale.pictures is not None}
            for line in write_files(results, self._options.results_folder, self._options.report, pictures):
                self._logger.info(line)
        return results

    def write_unfinished(self, error: BaseException) -> None:
        """Writes the tables and the report of all finished figures, and says why the test ended; raises nothing."""
        results = self.results(f"the test ended early: {_reason(error)}.")
        figures = sum(len(row.evaluations) for scale in results.scales for row in scale.rows)
        if not (self._place.is_master and figures):
            return
        options = self._options.report.model_copy(update={"plots": False})
        try:
            for _ in write_files(results, self._options.results_folder, options, {}):
                pass
            where = f"marked as incomplete, in {self._options.results_folder}"
        except (UserError, OSError) as second:
            where = f"but cannot be written: {second}"
        self._logger.warning(f"averages finished before the test ended: {figures}; they are kept, {where}")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Scale:
    """The test of all networks at one scale."""

    def __init__(
        self, options: Options, rank_info: RankInfo, stop: StopRequest, stopwatch: Stopwatch | None, *, several: bool
    ) -> None:
        self.options, self.rank_info, self.stop, self._stopwatch = options, rank_info, stop, stopwatch
        self.logger = get_root_logger()
        self.datasets: dict[str, EvaluationDataset] = {
            block.name: build_eval_dataset(block) for block in options.datasets_of("val", "test").values()
        }
        self.better = {name: better_direction(block) for name, block in options.val.metrics.items()}
        self.folder = options.visualization_folder / (f"x{options.scale}" if several else "")
        self.pictures: SavedPictures | None = None
        self.begun = False
        self._rows: list[Row] = []
        self._fitting: list[str] = []
        self._architectures: dict[int, str] = {}
        self._remarks: list[str] = []

    def check(self) -> None:
        """Looks for what would otherwise be found after much of the work: images, names, regions, sizes, weights.

        Networks are loaded for it and once more when it is their turn, so that one at a time is in memory.

        Raises:
            UserError: images cannot be used or do not fit each other or a network, two have one name, a region is not
                in its image, or weights do not fit their network or are none.
        """
        if not (self.options.networks or self.options.network_g):
            return  # none of them is there: nothing is done at this scale
        names = {name: listed for name, data in self.datasets.items() if (listed := image_names(data)) is not None}
        regions = self.options.report.regions if self.options.saves_images and self.options.report.plots else ()
        check_regions(
            [region for region in regions if region.dataset in names], self._saved(names), scale=self.options.scale
        )
        blocks = self.options.datasets_of("val", "test").values()
        require_equal(lambda: _files_read(self.options))
        require_equal_images(self.datasets)
        _, self._remarks = check_datasets([(self.datasets[block.name], block) for block in blocks], self.rank_info)
        for data in self.datasets.values():
            data[0]
        channels: set[int] = set()
        for candidate in _networks(self.options) if self.datasets else ():  # built, its weights loaded, and let go
            trial = Trial(candidate.label, candidate.network, torch.device("cpu"))
            for images in evaluation_images(self.options, self.datasets):
                channels.add(images.shape[0])
                self._fitting += check_evaluation(trial, candidate.block, images, self.options)
        if channels == {1}:  # costs are those of gray images
            report = self.options.report
            gray = report.model_copy(update={"input": (1, *report.input[1:])})
            self.options = self.options.model_copy(update={"report": gray})

    def results(self, latencies: Mapping[str, Spread]) -> ScaleResults:
        """What has been measured so far, with the latency of each architecture."""
        rows = (
            replace(row, latency=latencies.get(self._architectures.get(number, "")))
            for number, row in enumerate(self._rows)
        )
        return ScaleResults(self.options.scale, tuple(rows), self.options.skipped, tuple(self._remarks))

    def run(self, keep: Callable[[], None]) -> None:
        """Evaluates one network after the other; on several ranks all must call.

        Args:
            keep: called when there are new figures.

        Raises:
            Interrupted: a signal asked for it, on any rank.
            UserError: an image or weights cannot be read, or do not fit.
        """
        self.begun = True
        for line in self.options.skipped:
            self.logger.warning(f"x{self.options.scale}: left out {line}")
        for line in self._remarks:
            self.logger.warning(f"x{self.options.scale}: {line}")
        for line in dict.fromkeys(self._fitting):
            self.logger.info(line)
        for candidate in _networks(self.options) if self.datasets else ():
            if candidate.remark:
                log_remark(self.logger, candidate.remark)
            candidate.network.to(self.rank_info.device)
            if self.options.val.amp != "none":
                keep_output_precise(candidate.network)
                self._warn_if_slow(candidate.network)
            self._measure(candidate, keep)
            if any_rank([bool(self.stop)], self.rank_info.device)[0]:
                raise Interrupted(_INTERRUPTED)
        if self._rows and self.options.saves_images:
            names = {dataset: evaluation.images for dataset, evaluation in self._rows[0].evaluations.items()}
            self.pictures = self._saved(names)

    def _warn_if_slow(self, network: nn.Module) -> None:
        """Says where the first network at this scale is slower in the precision asked for than in float32."""
        first = not any(row.parameters for row in self._rows) and count_parameters(network) > 0
        if self.rank_info.is_master and first:
            amp = self.options.val.amp
            for line in warn_if_slow(network.eval(), self.rank_info.device, amp, f"val: amp: {amp}"):
                self.logger.warning(line)

    def _measure(self, candidate: _Candidate, keep: Callable[[], None]) -> None:
        """Adds a network's row, dataset by dataset, then its cost."""
        network, report = candidate.network, self.options.report
        row = Row(candidate.name, count_parameters(network), {}, weights=candidate.weights)
        self._rows.append(row)
        for name, dataset in self.datasets.items():
            evaluation = self._evaluate(candidate, name, dataset)
            self._rows[-1] = row = replace(row, evaluations={**row.evaluations, name: evaluation})
            figures = ", ".join(
                f"{metric_label(metric, self.better[metric] == 'higher')} {format_figure(mean, decimals_of(metric))}"
                for metric, mean in evaluation.means().items()
            )
            what = f"x{self.options.scale} {candidate.name}, {name} ({len(evaluation.images)} images)"
            self.logger.info(f"{what}: {figures or 'nothing was measured'}")
            keep()
        if row.parameters and self.rank_info.is_master:
            try:
                self._rows[-1] = replace(row, multiply_adds=count_multiply_adds(network, report.input))
                if self._stopwatch is not None:
                    label = f"x{self.options.scale} {candidate.name}"
                    self._architectures[len(self._rows) - 1] = self._stopwatch.add(label, network)
            except DataError as error:
                self.logger.warning(f"{candidate.name} has no figures of cost: {error}")

    def _evaluate(self, candidate: _Candidate, name: str, dataset: EvaluationDataset) -> Evaluation:
        val = self.options.val
        saves = self.options.saves_images or "gt" not in dataset[0]
        evaluation = evaluate(
            candidate.network,
            dataset,
            val.metrics,
            self.rank_info.device,
            scale=self.options.scale,
            self_ensemble=val.self_ensemble,
            tile=val.tile,
            tile_overlap=val.tile_overlap,
            amp=val.amp,
            save_image=self._image_saver(candidate.name, name) if saves else None,
            should_stop=lambda: bool(self.stop),
            progress=lambda indices: tqdm(
                indices,
                desc=f"x{self.options.scale} {candidate.name}, {name}",
                unit="image",
                disable=not (self.rank_info.is_master and sys.stderr.isatty()),
            ),
        )
        if evaluation is None:
            raise Interrupted(_INTERRUPTED)
        return evaluation

    def _saved(self, names: Mapping[str, Sequence[str]]) -> SavedPictures:
        return SavedPictures(
            self.datasets,
            names,
            folder=self.folder,
            by_network=bool(self.options.networks),
            suffix=self.options.val.suffix or self.options.name,
        )

    def _image_saver(self, row: str, dataset: str) -> SaveImage:
        saved = self._saved({})
        return lambda name, image: imwrite(image, saved.path(row, dataset, name))


@dataclass(frozen=True)
class _Candidate:
    """A network with its weights, the name of its row, and what the log should say of loading it.

    `label` is where its options stand, `block` what they say.
    """

    name: str
    network: nn.Module
    label: str
    block: Mapping[str, Any] | None = None
    remark: str | None = None
    file: str | None = None

    @property
    def weights(self) -> str | None:
        """The file of the weights and its SHA-256, in words; None where there is none."""
        return f"{self.file}, SHA-256 {sha256_of(Path(self.file))}" if self.file else None


def _networks(options: Options) -> Iterator[_Candidate]:
    if not options.networks:
        if options.network_g is None:
            return
        path = options.path
        if path.pretrain_network_g is None:
            network, remark = build_network(options.network_g), None
        else:
            network, remark = network_for(
                options.network_g,
                path.pretrain_network_g,
                param_key=path.param_key_g,
                strict=path.strict_load_g,
                scale=options.scale,
            )
        yield _Candidate(
            type(network).__name__, network, "network_g", options.network_g, remark, path.pretrain_network_g
        )
    for name, row in options.networks.items():
        label = f"networks.{name}"
        if row.type == "bicubic":
            yield _Candidate(name, build_network({"type": "Bicubic", "upscale": options.scale}), label)
            continue
        assert row.path is not None
        block = row.network or options.network_g
        network, remark = network_for(block, row.path, param_key=row.param_key, strict=row.strict, scale=options.scale)
        label = f"{label}.network" if row.network is not None else "network_g" if block is not None else label
        yield _Candidate(name, network, label, block, remark, row.path)


def _files_read(options: Options) -> dict[str, str]:
    """Digests of the weights that are tested."""
    named = {"path.pretrain_network_g": options.path.pretrain_network_g}
    named |= {f"networks.{name}.path": row.path for name, row in options.networks.items()}
    return {f"SHA-256 of {option}": digest_of_file(Path(file)) for option, file in named.items() if file is not None}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse_arguments(argv, training=False)
    test_pipeline(arguments.opt, launcher=arguments.launcher, force_yml=arguments.force_yml or ())
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
