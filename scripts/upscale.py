"""Upscales pictures and videos by a trained network: files, folders and patterns, with all that they carry.

python scripts/upscale.py --model experiments/NAME/models/net_g_latest.pth photo.jpg --output upscaled
python scripts/upscale.py --model net.pth photos 'scans/**/*.tif' --output upscaled --recursive --self_ensemble
python scripts/upscale.py --model net.pth film.mp4 --output upscaled --crf 16
python scripts/upscale.py --model exported/net_x2_openvino_int8.xml photos --output upscaled

Network and scale are recognised from the checkpoint; an exported file says them. docs/upscaling.md tells what is kept,
and how.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.engine.process.command import quiet_start, run_command
from basicsr.utils.process_settings import shorten_spinning

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds
    shorten_spinning()

import torch
from tqdm import tqdm
from upscaling_backends import PYTORCH, Backend, Model, choose, is_exported, load_exported, names

from basicsr.data.data_util import some
from basicsr.files.atomic_files import check_writable, sha256_of
from basicsr.files.band_files import BAND_SUFFIXES, MOST_BANDS
from basicsr.inference.bands_upscaling import upscale_bands
from basicsr.inference.pictures import DEFAULT_QUALITY, FORMATS, OutputError
from basicsr.inference.runner import ImageRunner
from basicsr.inference.sources import SUFFIXES, VIDEO_KINDS, Source, find_sources, is_video, not_taken, plan
from basicsr.inference.trials import Trial
from basicsr.inference.upscaling import Upscaler, upscale_file
from basicsr.utils.errors import CheckpointError, DataError, MachineError, NonFiniteError, OptionsError
from basicsr.utils.pass_times import warn_if_slow
from basicsr.utils.reparameterization import merge
from basicsr.utils.text import printable
from basicsr.weights.recognise import Pretrained, check_scale, load_pretrained

DEFAULT_CRF = {"h264": 18, "hevc": 20, "ffv1": None}
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")

_FRAMES_FOLLOW_FROM = ("param_key", "tile", "tile_overlap", "self_ensemble", "precision")
_TRIED = 48  # pixels a side
_LEAST_TILE = 8  # smaller ones are mostly context
_TILE_OF_RESULT = 1024  # pixels a side: tiles of the result, and the features behind them, stay this small


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; raises OptionsError where values do not fit together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("input", nargs="+", metavar="INPUT", help="a file, a folder, or a pattern in quotes such as 'a/**/*.png'")
    add("--model", required=True, metavar="FILE", help="checkpoint, .pth or .safetensors, or an exported file")
    add("--output", required=True, metavar="DIR", help="folder of the results; made if there is none")
    add("--scale", type=int, metavar="N", help="of a network for several; refuse one of another scale")
    add("--param_key", metavar="KEY", help="which weights of the file (default: params_ema, else params)")
    add("--recursive", action="store_true", help="also take pictures of folders below the folders given")
    add("--skip_existing", action="store_true", help="leave results that are there already (default: overwrite)")
    add("--suffix", default="_x{scale}", help="put after each name (default: _x{scale})")
    add("--format", default="png", choices=FORMATS, help="of the results (default: png)")
    add("--quality", type=int, metavar="1-100", help=f"of jpg and webp (default: {DEFAULT_QUALITY})")
    add("--tile", type=int, metavar="N", help="side of a tile of the input, in pixels; 0: whole (default: 1024/scale)")
    add("--tile_overlap", type=int, metavar="N", help="pixels seen around a tile (default: what the network needs)")
    add("--self_ensemble", action="store_true", help="average over eight flips and rotations: better, 8 times as slow")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    add("--backend", default="auto", choices=names(), help="what runs the network; auto says what it takes (default)")
    add("--precision", default="none", choices=("none", "bf16", "fp16"), help="none: float32, or the file's (default)")
    add_video_arguments(parser.add_argument_group("videos"))
    arguments = parser.parse_args(argv)
    check_video_arguments(arguments)
    if arguments.quality is not None and arguments.format not in ("jpg", "webp"):
        raise OptionsError(f"--quality is for --format jpg and webp; {arguments.format} is lossless: leave it out")
    if arguments.quality is not None and not 1 <= arguments.quality <= 100:
        raise OptionsError(f"--quality {arguments.quality}: give a number from 1 to 100")
    if not arguments.output:
        raise OptionsError("--output '': give a folder for the results; . is the present one")
    if set(arguments.suffix) & set("/\\\0"):
        raise OptionsError(f"--suffix {arguments.suffix} leads into another folder; leave out the slashes")
    if set(arguments.suffix.replace("{scale}", "")) & set("{}"):
        raise OptionsError(f"--suffix {arguments.suffix}: in braces there may be {{scale}} only")
    if arguments.tile is not None and arguments.tile < _LEAST_TILE and arguments.tile != 0:
        raise OptionsError(f"--tile {arguments.tile}: give {_LEAST_TILE} or more, or 0 for the whole picture at once")
    if (arguments.tile_overlap or 0) < 0:
        raise OptionsError(f"--tile_overlap {arguments.tile_overlap}: give 0 or more")
    return arguments


def add_video_arguments(group: argparse._ArgumentGroup) -> None:
    """What is asked about videos only."""
    add = group.add_argument
    add("--video_format", default="auto", choices=("auto", *VIDEO_KINDS), help="auto: mp4 and mov stay, else mkv")
    add("--video_codec", default="h264", choices=tuple(DEFAULT_CRF), help="default: h264; ffv1 is lossless")
    add("--crf", type=int, metavar="0-51", help="quality, lower is better (default: 18 for h264, 20 for hevc)")
    add("--preset", default="medium", choices=PRESETS, help="of the encoder: slower makes smaller files")
    add("--part_frames", type=int, default=240, metavar="N", help="frames of a part, after which a run can go on (240)")


def check_video_arguments(arguments: argparse.Namespace) -> None:
    """Raises OptionsError where values do not fit together; sets the default of `crf`."""
    codec, kind = arguments.video_codec, arguments.video_format
    if arguments.crf is not None and DEFAULT_CRF[codec] is None:
        raise OptionsError(f"--crf {arguments.crf}: {codec} is lossless; leave it out or use --video_codec h264")
    if arguments.crf is not None and not 0 <= arguments.crf <= 51:
        raise OptionsError(f"--crf {arguments.crf}: give a number from 0 to 51")
    if arguments.part_frames < 1:
        raise OptionsError(f"--part_frames {arguments.part_frames}: give 1 or more")
    if codec == "ffv1" and kind == "mov":
        raise OptionsError("--video_format mov does not hold ffv1; use mkv or mp4")
    arguments.crf = DEFAULT_CRF[codec] if arguments.crf is None else arguments.crf


def ending_of(path: str, arguments: argparse.Namespace) -> str:
    """The ending of a file's result."""
    if not is_video(path):
        return f".{arguments.format}"
    if arguments.video_format != "auto":
        return f".{arguments.video_format}"
    suffix = Path(path).suffix.lower()
    if arguments.video_codec == "ffv1" or suffix not in (".mp4", ".m4v", ".mov"):
        return ".mkv"
    return ".mov" if suffix == ".mov" else ".mp4"


def without_videos(sources: Sequence[Source]) -> list[Source]:
    """All sources, or only pictures where PyAV is not installed: MachineError if the command line names a video."""
    videos = [source for source in sources if is_video(source.path)]
    if not videos or importlib.util.find_spec("av") is not None:
        return list(sources)
    remedy = "videos need PyAV, not installed here: pip install -e '.[video]'"
    if len(videos) == len(sources) or any(source.named for source in videos):
        raise MachineError(f"{printable(videos[0].path)}: {remedy}")
    say(f"warning: {some([source.path for source in videos], 'video')} not read; {remedy}", error=True)
    return [source for source in sources if source not in videos]


def load(arguments: argparse.Namespace) -> Model:
    """Loads the network; raises OptionsError where its scale is not that wanted, CheckpointError where it is no use."""
    if is_exported(arguments.model):
        model = load_exported(arguments)
        if arguments.scale not in (None, model.scale):
            raise OptionsError(f"--scale {arguments.scale}: {arguments.model} is for x{model.scale}")
    else:
        pretrained = load_checkpoint(arguments.model, arguments.scale, arguments.param_key)
        model = Model(Path(arguments.model), pretrained.scale, pretrained.in_channels, pretrained)
    if model.pretrained is not None and model.pretrained.remark:
        say(model.pretrained.remark, error=True)
    return model


def load_checkpoint(path: str, scale: int | None, param_key: str | None) -> Pretrained:
    """A network of a checkpoint, which takes images of any size and as many channels as it makes."""
    pretrained = load_pretrained(path, param_key=param_key, only_this=True, scale=scale)
    check_scale(pretrained, path, scale)
    if pretrained.in_channels != pretrained.out_channels or not 1 <= pretrained.in_channels <= MOST_BANDS:
        raise CheckpointError(
            f"{path} is a network from {pretrained.in_channels} to {pretrained.out_channels} channels, allowed are 1 to"
            f" 1, 3 to 3, and as many bands, up to {MOST_BANDS}; give another checkpoint"
        )
    if pretrained.only_size is not None:
        height, width = pretrained.only_size
        raise CheckpointError(
            f"{path} takes images of {height}x{width} pixels only (it has an absolute position embedding);"
            " give another checkpoint"
        )
    merge(pretrained.network)
    check(pretrained, path)
    return pretrained


def check(pretrained: Pretrained, path: str) -> None:
    """Tries the network on a small image; raises CheckpointError where it makes no image `scale` times as large."""
    shape = pretrained.in_channels, _TRIED, _TRIED
    outcome = Trial("network", pretrained.network, torch.device("cpu")).outcome(shape)
    if outcome.made is None:
        raise CheckpointError(
            f"{path}: {pretrained.architecture} fails on an image of {_TRIED}x{_TRIED}: {outcome.reason}"
        )
    expected = pretrained.out_channels, *(side * pretrained.scale for side in outcome.given[1:])
    if outcome.made != expected:
        made, wanted = ("x".join(map(str, entry)) for entry in (outcome.made, expected))
        raise CheckpointError(
            f"{path}: {pretrained.architecture} makes {made} of a small image, x{pretrained.scale} is {wanted}"
        )


def build_runner(backend: Backend, scale: int, arguments: argparse.Namespace, tiles: tqdm) -> ImageRunner:
    """The network on its device, run as the command line asks for; `tiles` shows how far it is with a picture."""

    def progress(done: int, total: int) -> None:
        if done == 1:
            tiles.reset(total)
        tiles.n, tiles.total = done, total
        tiles.refresh()

    slow = warn_if_slow(backend.network, backend.device, backend.precision.amp, f"--precision {arguments.precision}")
    for line in slow:
        say(f"warning: {line}", error=True)
    tile = max(_TILE_OF_RESULT // scale, 32) if arguments.tile is None else arguments.tile
    return ImageRunner(
        backend.network,
        scale,
        backend.device,
        tile=tile or None,
        tile_overlap=backend.overlap if arguments.tile_overlap is None else arguments.tile_overlap,
        self_ensemble=arguments.self_ensemble,
        precision=backend.precision,
        multiple=backend.multiple,
        only_size=backend.only_size,
        follows_pooling=backend.follows_pooling,
        report=lambda line: say(line, error=True),
        progress=progress,
    )


def prepare_output(folder: Path) -> None:
    """Makes the folder of the results; raises OutputError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "there is a file of this name" if isinstance(error, FileExistsError) else error.strerror
        raise OutputError(f"cannot make the folder --output {folder}: {reason}; choose another") from error
    try:
        check_writable(folder)
    except CheckpointError as error:
        raise OutputError(f"{error}; choose another folder for --output") from error


def say(line: str, *, error: bool = False) -> None:
    """Prints a line above the progress bar; what no terminal should be sent of a name is printed escaped."""
    file = sys.stderr if error else sys.stdout
    tqdm.write(printable(line), file=file)
    file.flush()


Upscale = Callable[[str, Path], tuple[str, str, tuple[str, ...]]]
"""Upscales a file to a path; returns sizes before and after, and remarks."""


def upscale_all(jobs: Mapping[str, Path], upscale: Upscale, arguments: argparse.Namespace) -> dict[str, int]:
    """Upscales each file, says what came of it, and counts; only what concerns all of them ends the run."""
    counts = {"upscaled": 0, "failed": 0, "skipped": 0}
    for name, target in tqdm(jobs.items(), desc="files", unit="", mininterval=0, disable=None):
        if arguments.skip_existing and target.exists():
            counts["skipped"] += 1
            continue
        start = time.perf_counter()
        try:
            before, after, notes = upscale(name, target)
            seconds = f"{time.perf_counter() - start:.1f} s"
            say("; ".join((f"{name}: {before} -> {after}, {seconds}", *notes)))
            counts["upscaled"] += 1
        except OutputError:
            raise
        except DataError as error:
            say(f"error: {error}", error=True)
            counts["failed"] += 1
        except (MachineError, NonFiniteError) as error:  # of the network: it knows no names
            say(f"error: {name}: {error}", error=True)
            counts["failed"] += 1
    return counts


def upscale_one(
    name: str, target: Path, upscaler: Upscaler, backend: str, arguments: argparse.Namespace
) -> tuple[str, str, tuple[str, ...]]:
    """Upscales a picture or a video; returns sizes before and after, and remarks."""
    if not is_video(name):
        return upscale_file(name, target, upscaler, arguments.format, arguments.quality or DEFAULT_QUALITY)
    from basicsr.inference.video_upscaling import VideoJob, VideoSettings

    made_of = {"--model": sha256_of(Path(arguments.model)), "scale": upscaler.scale}
    made_of |= {f"--{key}": getattr(arguments, key) for key in _FRAMES_FOLLOW_FROM}
    if backend != PYTORCH:  # parts of earlier versions name none
        made_of["--backend"] = backend
    settings = VideoSettings(arguments.video_codec, arguments.crf, arguments.preset, arguments.part_frames, made_of)
    done = VideoJob(name, target, upscaler, settings, say).run()
    return done.before, f"{done.after}, {done.frames:,d} frames", done.notes


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse(argv)
    # A wrong path is told before the network is loaded, which tells what kinds of files it takes.
    any_kind = tuple(dict.fromkeys((*SUFFIXES, *BAND_SUFFIXES)))
    find_sources(arguments.input, recursive=arguments.recursive, suffixes=any_kind)
    model = load(arguments)
    bands = model.channels if model.channels not in (1, 3) else None
    suffixes = SUFFIXES if bands is None else BAND_SUFFIXES
    sources = without_videos(find_sources(arguments.input, recursive=arguments.recursive, suffixes=suffixes))
    output = Path(arguments.output)
    suffix = arguments.suffix.replace("{scale}", str(model.scale))

    def ending(path: str) -> str:
        return ending_of(path, arguments) if bands is None else Path(path).suffix.lower()

    jobs, left_out = plan(sources, output, suffix=suffix, ending=ending, scale=model.scale, bands=bands)
    for given in arguments.input:
        for sentence in not_taken(given, output, recursive=arguments.recursive, suffixes=suffixes):
            say(f"warning: {given}: {sentence}", error=True)
    backend = choose(model, jobs, arguments, whole=arguments.tile == 0, say=say)
    say(f"{model.names_itself}; by {backend.told}")
    with tqdm(desc="tiles", unit="", position=1, leave=False, disable=None) as tiles:
        runner = build_runner(backend, model.scale, arguments, tiles)
        prepare_output(output)
        upscaler = Upscaler(runner.to_array, model.scale, model.channels)

        def upscale(name: str, target: Path) -> tuple[str, str, tuple[str, ...]]:
            if bands is not None:
                return upscale_bands(name, target, runner.to_array, bands)
            return upscale_one(name, target, upscaler, backend.name, arguments)

        counts = upscale_all(jobs, upscale, arguments)
    if left_out:
        print(f"{left_out} left out: results of an earlier run")
    skipped = f", {counts['skipped']} skipped (there already)" if counts["skipped"] else ""
    print(f"{counts['upscaled']} upscaled, {counts['failed']} failed{skipped}", flush=True)
    return DataError.exit_code if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
