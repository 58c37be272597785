"""Testing: `python basicsr/test.py -opt FILE`. Any number of networks on any number of datasets.

Metrics are computed where a dataset has HR images; where it has none, the results are saved as images.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: import the package it lies in, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from torch import nn
from tqdm import tqdm

from basicsr.archs import build_network
from basicsr.data import build_eval_dataset
from basicsr.engine import experiment
from basicsr.engine.command import run_command
from basicsr.engine.distributed import Launcher, Place, distributed
from basicsr.engine.stop import Interrupted, StopRequest
from basicsr.metrics.evaluator import Evaluation, SaveImage, evaluate
from basicsr.metrics.report import Row, markdown_table, write_csv
from basicsr.utils.img_util import imwrite
from basicsr.utils.options import load_options, parse_arguments
from basicsr.utils.options_schema import Options
from basicsr.utils.weights import load_network


def test_pipeline(
    source: str | Path | Mapping[str, Any],
    *,
    launcher: Launcher = "none",
    force_yml: Sequence[str] = (),
    root: str | Path = ".",
) -> list[Row]:
    """Tests what an options file, or the same content as a dict, describes.

    Writes results/NAME: the log, `metrics.csv` with every image, `summary.md`, and images where asked for.

    Args:
        source: path of the file, or the options themselves.
        launcher: as for training; images are shared among ranks.
        force_yml: changes to the options such as `val:save_img=true`.
        root: the folder of `results`.

    Returns:
        A row for each network, in the file's order.

    Raises:
        UserError: one of its kinds, for anything that the user can mend.
    """
    options = load_options(source, overrides=force_yml, training=False, root=Path(root))
    params = options.dist_params
    with StopRequest() as stop, distributed(launcher, options.num_gpu, params.backend, params.port) as place:
        datasets = {block.name: build_eval_dataset(block) for block in options.datasets_of("val", "test").values()}
        experiment.prepare_results(options, place)
        with experiment.open_log(options.results_folder, "test", options.name, place) as logger:
            rows = []
            for name, network, remark in _networks(options):
                if remark:
                    logger.info(remark)
                network.to(place.device)
                evaluations = {
                    dataset: _evaluate(options, place, stop, network, name, dataset, content)
                    for dataset, content in datasets.items()
                }
                rows.append(Row(name, sum(p.numel() for p in network.parameters()), evaluations))
            if place.is_master:
                write_csv(options.results_folder / "metrics.csv", rows)
                table = markdown_table(rows)
                (options.results_folder / "summary.md").write_text(f"{table}\n", encoding="utf-8")
                logger.info(f"{options.name}, x{options.scale}; files in {options.results_folder}\n{table}")
    return rows


def _networks(options: Options) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Name, network with its weights, and what the log should say of loading them, row by row."""
    if not options.networks:
        assert options.network_g is not None
        network = build_network(options.network_g)
        remark = None
        path = options.path
        if path.pretrain_network_g is not None:
            remark = load_network(
                network, path.pretrain_network_g, param_key=path.param_key_g, strict=path.strict_load_g
            )
        yield type(network).__name__, network, remark
    for name, row in options.networks.items():
        if row.type == "bicubic":
            yield name, build_network({"type": "Bicubic", "upscale": options.scale}), None
            continue
        block = row.network or options.network_g
        assert block is not None and row.path is not None
        network = build_network(block)
        yield name, network, load_network(network, row.path, param_key=row.param_key, strict=row.strict)


def _evaluate(
    options: Options,
    place: Place,
    stop: StopRequest,
    network: nn.Module,
    name: str,
    dataset: str,
    content: Any,
) -> Evaluation:
    has_gt = "gt" in content[0]
    evaluation = evaluate(
        network,
        content,
        options.val.metrics,
        place.device,
        save_image=_image_saver(options, name, dataset) if options.val.save_img or not has_gt else None,
        should_stop=lambda: bool(stop),
        progress=lambda indices: tqdm(
            indices,
            desc=f"{name}, {dataset}",
            unit="image",
            disable=not (place.is_master and sys.stderr.isatty()),
        ),
    )
    if evaluation is None:
        raise Interrupted("interrupted: the results are incomplete; start again")
    return evaluation


def _image_saver(options: Options, network: str, dataset: str) -> SaveImage:
    folder = options.visualization_folder / (network if options.networks else "") / dataset
    suffix = options.val.suffix or options.name

    def save(image_name: str, image: np.ndarray) -> None:
        imwrite(image, str(folder / f"{image_name}_{suffix}.png"))

    return save


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse_arguments(argv, training=False)
    test_pipeline(arguments.opt, launcher=arguments.launcher, force_yml=arguments.force_yml or ())
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
