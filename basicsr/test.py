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

from basicsr.engine.process.command import StopRequest, quiet_start, run_command
from basicsr.utils.process_settings import STOP_SIGNALS, return_freed_memory, shorten_spinning

if __name__ == "__main__":
    quiet_start(STOP_SIGNALS)  # what is imported below takes seconds
    shorten_spinning()

import torch
from torch import nn

from basicsr.archs import build_network
from basicsr.archs.luma import ON_LUMA, LumaNetwork
from basicsr.config.load import load_test_options, parse_arguments
from basicsr.config.schema import Options
from basicsr.config.warnings import unused_in_testing
from basicsr.data import build_eval_dataset
from basicsr.engine.inputs import check_datasets, digest_of_file, require_equal_images
from basicsr.engine.logs.run_log import open_log
from basicsr.engine.process.distributed import Launcher, RankInfo, joined, require_equal
from basicsr.engine.process.rank_watchdog import following
from basicsr.engine.run_folder import prepare_results, results_taken
from basicsr.engine.startup_checks import check_evaluation, check_plausible, evaluation_images
from basicsr.engine.validation import evaluate_with, save_result
from basicsr.inference.trials import Trial, for_colours
from basicsr.metrics import better_direction, prepare_metrics
from basicsr.metrics.evaluator import EvaluationDataset, SaveImage, image_names
from basicsr.report.comparison import SavedPictures, check_regions
from basicsr.report.speed import Latencies, Stopwatch, device_name
from basicsr.report.tables import Results, Row, ScaleResults, labelled_figure
from basicsr.report.writing import write_files, write_tables
from basicsr.utils.complexity import count_multiply_adds, count_parameters
from basicsr.utils.dist_util import any_rank, on_master
from basicsr.utils.errors import DataError, Interrupted, UserError
from basicsr.utils.logger import get_root_logger, log_remark
from basicsr.utils.pass_times import warn_if_slow
from basicsr.utils.precision import keep_output_precise
from basicsr.utils.reparameterization import merge
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
    warnings: list[str] = []

    def load() -> list[Options]:
        return load_test_options(source, overrides=force_yml, root=Path(root), warn=warnings.append)

    with (
        joined(launcher, load, {}) as (loaded, rank_info),
        following(rank_info.watch),
        results_taken(loaded) as own_again,
    ):
        first, stop = loaded[0], StopRequest()
        timed = first.report.speed and rank_info.is_master
        stopwatch = Stopwatch(first.report.input, rank_info.device) if timed else None
        scales = [_Scale(options, rank_info, stop, stopwatch, several=len(loaded) > 1) for options in loaded]
        for scale in scales:
            scale.check()
        prepare_metrics(first.val.metrics, rank_info.device)
        on_master(lambda: prepare_results(loaded))
        own_again()
        with open_log(first.results_folder, "test", first.name) as logger:
            report = _Report(scales, rank_info, logger)
            for line in filter(None, (rank_info.remark, *warnings, *unused_in_testing(first))):
                logger.warning(line)
            try:
                with stop, following(rank_info.watch):  # a signal ends all ranks together, between images
                    for scale in scales:
                        scale.run(report.keep)
                    report.time(stopwatch, stop)
            except BaseException as error:  # figures that are finished are not lost, whatever comes
                report.write_unfinished(error)
                raise
            return report.write()


class _Report:
    """Writes the figures: tables after each dataset, all else at the end."""

    def __init__(self, scales: Sequence[_Scale], rank_info: RankInfo, logger: logging.Logger) -> None:
        self._scales, self._rank_info, self._logger = scales, rank_info, logger
        self._options, self._folder = scales[0].options, scales[0].options.results_folder
        self._latencies = Latencies()

    def results(self, incomplete: str = "") -> Results:
        """What has been measured so far."""
        begun = [scale for scale in self._scales if scale.begun or not incomplete]
        return Results(
            name=self._options.name,
            scales=tuple(scale.results(self._latencies) for scale in begun),
            device=device_name(self._rank_info.device),
            input_shape=self._options.report.input,
            better={name: better_direction(block) for name, block in self._options.val.metrics.items()},
            incomplete=incomplete,
            latency_doubt=self._latencies.doubt,
            precision=self._options.val.amp,
        )

    def time(self, stopwatch: Stopwatch | None, stop: StopRequest) -> None:
        """Times all networks, once their figures are there; all ranks must call. Raises Interrupted."""
        if stopwatch is not None:
            stopwatch.announce(self._logger.info)
        self._latencies = on_master(lambda: stopwatch.measure(lambda: bool(stop)) if stopwatch else Latencies())
        _raise_if_stopped(stop, self._rank_info)
        for remark in self._latencies.remarks:
            self._logger.warning(remark)
        if self._latencies.doubt:
            self._logger.warning(
                f"latencies are no figures to quote: {self._latencies.doubt}; they are left out of tables.tex and plots"
            )

    def keep(self) -> None:
        """Writes the tables of all finished figures, in case the test ends early. All ranks must call."""
        results = self.results("the test has not come to its end.")
        on_master(lambda: write_tables(results, self._folder, self._options.report))

    def write(self) -> Results:
        """Writes everything; raises UserError where that is not possible."""
        results = self.results()
        if self._rank_info.is_master:
            pictures = {scale.options.scale: scale.pictures for scale in self._scales if scale.pictures is not None}
            for line in write_files(results, self._folder, self._options.report, pictures):
                self._logger.info(line)
        return results

    def write_unfinished(self, error: BaseException) -> None:
        """Writes the tables and the report of all finished figures, and logs why the test ended; raises nothing."""
        reason = " ".join(str(error).split()) or type(error).__name__
        results = self.results(f"the test ended early: {reason}.")
        figures = sum(len(row.evaluations) for scale in results.scales for row in scale.rows)
        if not (self._rank_info.is_master and figures):
            return
        options = self._options.report.model_copy(update={"plots": False})
        try:
            list(write_files(results, self._folder, options, {}))
            where = f"marked as incomplete, in {self._folder}"
        except (UserError, OSError) as second:
            where = f"but cannot be written: {second}"
        self._logger.warning(f"averages finished before the test ended: {figures}; they are kept, {where}")


class _Scale:
    """The test of all networks at one scale."""

    def __init__(
        self, options: Options, rank_info: RankInfo, stop: StopRequest, stopwatch: Stopwatch | None, *, several: bool
    ) -> None:
        self.options, self.rank_info, self.stop, self._stopwatch = options, rank_info, stop, stopwatch
        self.logger = get_root_logger()
        self.blocks = list(options.datasets_of("val", "test").values())
        self.datasets: dict[str, EvaluationDataset] = {block.name: build_eval_dataset(block) for block in self.blocks}
        self.folder = options.visualization_folder / (f"x{options.scale}" if several else "")
        self.pictures: SavedPictures | None = None
        self.begun = False
        self._rows: list[Row] = []
        self._fitting: list[str] = []
        self._architectures: dict[int, str] = {}
        self._warnings: list[str] = []
        self._channels: set[int] = set()

    def check(self) -> None:
        """Finds what would otherwise be found after much of the work: images, names, regions, sizes, weights.

        Networks are loaded for it and once more when it is their turn, so that one at a time is in memory.

        Raises:
            UserError: images cannot be used or do not fit each other or a network, two have one name, a region is not
                in its image, or weights do not fit their network or are none.
        """
        options = self.options
        if not (options.networks or options.network_g):
            return  # all networks are missing: nothing is done at this scale
        names = {name: listed for name, data in self.datasets.items() if (listed := image_names(data)) is not None}
        regions = options.report.regions if options.saves_images and options.report.plots else ()
        shown = [region for region in regions if region.dataset in names]
        check_regions(shown, self._saved(names), scale=options.scale)
        files = {"path.pretrain_network_g": options.path.pretrain_network_g}
        files |= {f"networks.{name}.path": row.path for name, row in options.networks.items()}
        require_equal(
            lambda: {f"SHA-256 of {option}": digest_of_file(Path(file)) for option, file in files.items() if file}
        )
        require_equal_images(self.datasets)
        _, self._warnings = check_datasets(
            [(self.datasets[block.name], block) for block in self.blocks], self.rank_info
        )
        for data in self.datasets.values():
            data[0]
        samples = list(evaluation_images(options, self.datasets))
        self._channels = {images.shape[0] for images in samples}
        for candidate in self._candidates():  # built, its weights loaded, and let go
            trial = Trial(candidate.label, candidate.network, torch.device("cpu"))
            for images in samples:
                self._fitting += check_evaluation(trial, candidate.block, images, options)
            if candidate.file is not None:
                self._fitting += check_plausible(candidate.name, candidate.network, candidate.file, samples)
        if len(self._channels) == 1 and self._channels != {3}:  # costs are those of gray images, or of bands
            own = options.report.model_copy(update={"input": (*self._channels, *options.report.input[1:])})
            self.options = options.model_copy(update={"report": own})

    def results(self, latencies: Latencies) -> ScaleResults:
        """What has been measured so far, with the latency of each architecture."""
        measured = [latencies.spreads.get(self._architectures.get(number, "")) for number in range(len(self._rows))]
        rows = (replace(row, latency=latency) for row, latency in zip(self._rows, measured, strict=True))
        return ScaleResults(self.options.scale, tuple(rows), self.options.skipped, tuple(self._warnings))

    def run(self, keep: Callable[[], None]) -> None:
        """Evaluates one network after the other, and calls `keep` for new figures; on several ranks all must call.

        Raises:
            Interrupted: a signal asked for it, on any rank.
            UserError: an image or weights cannot be read, or do not fit.
        """
        self.begun = True
        for line in (*(f"left out {line}" for line in self.options.skipped), *self._warnings):
            self.logger.warning(f"x{self.options.scale}: {line}")
        for line in dict.fromkeys(self._fitting):
            log_remark(self.logger, line)
        for candidate in self._candidates():
            if candidate.remark:
                log_remark(self.logger, candidate.remark)
            candidate.network.to(self.rank_info.device)
            if self.options.val.amp != "none":
                keep_output_precise(candidate.network)
                # The first network with parameters shows whether this precision is slower than float32 here.
                first = not any(row.parameters for row in self._rows) and count_parameters(candidate.network) > 0
                if first and self.rank_info.is_master:
                    device, amp = self.rank_info.device, self.options.val.amp
                    for line in warn_if_slow(candidate.network.eval(), device, amp, f"val: amp: {amp}"):
                        self.logger.warning(line)
            return_freed_memory()  # else the largest image needs its memory beside the pieces that the last one left
            self._measure(candidate, keep)
            _raise_if_stopped(self.stop, self.rank_info)
        if self._rows and self.options.saves_images:
            names = {dataset: evaluation.images for dataset, evaluation in self._rows[0].evaluations.items()}
            self.pictures = self._saved(names)

    def _candidates(self) -> Iterator[_Candidate]:
        """The networks, one at a time; those of gray images take Y of RGB ones."""
        for candidate in _networks(self.options) if self.datasets else ():
            if self.options.deploy:
                merge(candidate.network)
            network = for_colours(candidate.network) if 3 in self._channels else candidate.network
            if isinstance(network, LumaNetwork):
                known, remark = candidate.remark, f"{candidate.name}: {ON_LUMA}"
                joined = type(known)(f"{known}; {remark}") if known else remark
                candidate = replace(candidate, network=network, remark=joined)
            yield candidate

    def _measure(self, candidate: _Candidate, keep: Callable[[], None]) -> None:
        """Adds a network's row, dataset by dataset, then its cost."""
        network, options = candidate.network, self.options
        file = candidate.file
        weights = f"{file}, SHA-256 {digest_of_file(Path(file))}" if file else None
        row = Row(candidate.name, count_parameters(network), {}, weights=weights)
        self._rows.append(row)
        for name, dataset in self.datasets.items():
            what = f"x{options.scale} {candidate.name}, {name}"
            saves = options.saves_images or "gt" not in dataset[0]
            save_image = self._image_saver(candidate.name, name) if saves else None
            evaluation = evaluate_with(options, network, dataset, self.rank_info, self.stop, what, save_image)
            if evaluation is None:
                raise Interrupted(_INTERRUPTED)
            self._rows[-1] = row = replace(row, evaluations={**row.evaluations, name: evaluation})
            figures = ", ".join(
                labelled_figure(metric, mean, better_direction(options.val.metrics[metric]) == "higher")
                for metric, mean in evaluation.means().items()
            )
            count = len(evaluation.images)
            self.logger.info(f"{what} ({count} images): {figures or 'nothing was measured'}")
            keep()
        if row.parameters and self.rank_info.is_master:
            try:
                self._rows[-1] = replace(row, multiply_adds=count_multiply_adds(network, options.report.input))
                if self._stopwatch is not None:
                    label = f"x{options.scale} {candidate.name}"
                    self._architectures[len(self._rows) - 1] = self._stopwatch.add(label, network)
            except DataError as error:
                self.logger.warning(f"{candidate.name} has no figures of cost: {error}")

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
        return lambda name, image: save_result(self.datasets[dataset], image, saved.path(row, dataset, name))


@dataclass(frozen=True)
class _Candidate:
    """A network with its weights and the name of its row.

    `label` is where its options stand, `block` what they say, `remark` what to log of loading `file`.
    """

    name: str
    network: nn.Module
    label: str
    block: Mapping[str, Any] | None = None
    remark: str | None = None
    file: str | None = None


def _networks(options: Options) -> Iterator[_Candidate]:
    scale, path = options.scale, options.path
    if not options.networks and (block := options.network_g) is not None:
        file, remark = path.pretrain_network_g, None
        if file is None:
            network = build_network(block)
        else:
            key, strict = path.param_key_g, path.strict_load_g
            network, remark = network_for(block, file, param_key=key, strict=strict, scale=scale)
        yield _Candidate(type(network).__name__, network, "network_g", block, remark, file)
    for name, row in options.networks.items():
        label = f"networks.{name}"
        if row.type == "bicubic":
            yield _Candidate(name, build_network({"type": "Bicubic", "upscale": scale}), label)
            continue
        assert row.path is not None
        block = row.network or options.network_g
        network, remark = network_for(block, row.path, param_key=row.param_key, strict=row.strict, scale=scale)
        label = f"{label}.network" if row.network is not None else "network_g" if block is not None else label
        yield _Candidate(name, network, label, block, remark, row.path)


def _raise_if_stopped(stop: StopRequest, rank_info: RankInfo) -> None:
    if any_rank([bool(stop)], rank_info.device)[0]:
        raise Interrupted(_INTERRUPTED)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse_arguments(argv, training=False)
    test_pipeline(arguments.opt, launcher=arguments.launcher, force_yml=arguments.force_yml or ())
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
