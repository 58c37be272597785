"""A step of MCAD-KD by our fast mode and by the reference: time, memory, and whether they are the same step."""

from __future__ import annotations

from functools import partial
from typing import Any

from basicsr.utils.timing import Spread, in_turn, ratios, spread
from benchmarks.bench import Bench
from benchmarks.options import FAST, PAIRS, PLAIN, shipped_options
from benchmarks.table import Detail, Outcome, Report, Target, short

NAMES = {"edsr": "EDSR", "rcan": "RCAN", "swinir": "SwinIR"}
SPEED = {"edsr": 7.0, "rcan": 6.5, "swinir": 4.5}
LR_SIZE, SCALE, BATCH = 48, 4, 4
_SMALL: dict[str, dict[str, Any]] = {
    "edsr": {"num_block": 2},
    "rcan": {"num_group": 2, "num_block": 2},
    "swinir": {"depths": [2, 2], "num_heads": [6, 6]},
}
_MIB = 1 << 20


def step_options(bench: Bench, pair: str, *, small: bool = False, **changes: Any) -> dict[str, Any]:
    """The options of MCAD-KD x4 with a pair of networks, on the CPU.

    Args:
        bench: the setting.
        pair: of networks.
        small: two images, and networks of few layers.
        **changes: of top-level options.
    """
    small = small or bench.quick
    images = bench.pairs("patches", 4, (LR_SIZE * SCALE, LR_SIZE * SCALE), SCALE)
    options = shipped_options(f"mcadkd_{pair}_x4", images, 2 if small else BATCH, **{"num_gpu": 0, **changes})
    if small:
        options["network_g"].update(_SMALL[pair])
        options["network_t"].update(_SMALL[pair])
        options["network_d"]["num_feat"] = 8
    return options


def batch_of(options: dict[str, Any]) -> int:
    """Images to a step."""
    return int(options["datasets"]["train"]["batch_size_per_gpu"])


def sides(bench: Bench, pair: str) -> dict[str, dict[str, Any]]:
    """Settings of both sides and of what stands in for a missing reference."""
    plain = step_options(bench, pair, **PLAIN)
    return {
        "ours": {"options": step_options(bench, pair, **FAST), "threads": bench.threads},
        "reference": reference_settings(bench, plain),
        "fallback": {"options": plain, "threads": bench.threads, "as_users": False},
    }


def reference_settings(bench: Bench, options: dict[str, Any]) -> dict[str, Any]:
    """Of the reference's step."""
    return {"options": options, "batch": batch_of(options), "lr_size": LR_SIZE, "threads": bench.threads}


def step(bench: Bench, pair: str) -> Report:
    """Seconds of a step, and how far both sides are from what the machine could do."""
    settings = sides(bench, pair)
    with bench.against_reference("step", settings["ours"], settings["reference"], settings["fallback"]) as workers:
        flops = workers["reference"].ask("flops")  # which also warms it up
        workers["ours"].ask("run")
        times = in_turn({name: partial(worker.ask, "run") for name, worker in workers.items()}, bench.rounds, warm_up=0)
        bench.note_idle(workers["reference"])
    gained, took = ratios(times["reference"], times["ours"]), {name: spread(times[name]) for name in times}
    outcome = Outcome(
        row=f"step_{pair}",
        what=f"MCAD-KD step, {NAMES[pair]} x4, batch {batch_of(settings['ours']['options'])}",
        reference=f"{short(took['reference'].median)} s",
        ours=f"{short(took['ours'].median)} s",
        figure=gained,
        target=Target("at least", SPEED[pair], " x"),
    )
    line = [f"step_{pair}", short(flops / 1e9)]
    for side, kind in (("reference", "float32"), ("ours", "bf16")):
        floor = flops / 1e9 / bench.peaks.best(kind)
        line += [short(floor), short(took[side].median), f"{took[side].median / floor:.2f} x"]
    header = ("step", "GFLOP", "float32 floor, s", "reference, s", "above", "bf16 floor, s", "ours, s", "above")
    title = "Operations of a step (forward, backward; counted on the reference) and its floor at the measured peak:"
    return Report((outcome,), (Detail(title, header, (tuple(line),)),))


def memory(bench: Bench, pair: str) -> Report:
    """Peak memory of both sides, each in a process of its own."""
    settings, found = sides(bench, pair), {}
    with bench.reference_side("step", settings["reference"], settings["fallback"]) as worker:
        found["reference"] = worker.ask("peak_memory", steps=3)
    with bench.ours("step", **settings["ours"]) as worker:
        found["ours"] = worker.ask("peak_memory", steps=3)
    return Report((_memory_outcome(f"memory_{pair}", f"peak memory of the {NAMES[pair]} step", found, 1.0),))


def memory_checkpointed(bench: Bench) -> Report:
    """What recomputing SwinIR's layers in the backward pass saves, both sides in the fast mode."""
    found = {}
    for name, recomputes in (("reference", False), ("ours", True)):
        options = step_options(bench, "swinir", **FAST)
        options["network_g"]["use_checkpoint"] = recomputes
        with bench.ours("step", options=options, threads=bench.threads) as worker:
            found[name] = worker.ask("peak_memory", steps=3)
    what = "peak memory of the SwinIR step, use_checkpoint against without, both fast mode"
    return Report((_memory_outcome("memory_checkpoint", what, found, 0.5),))


def _memory_outcome(row: str, what: str, found: dict[str, int], limit: float) -> Outcome:
    ratio = found["ours"] / found["reference"]
    return Outcome(
        row=row,
        what=what,
        reference=f"{found['reference'] / _MIB:.0f} MiB",
        ours=f"{found['ours'] / _MIB:.0f} MiB",
        figure=Spread(ratio, ratio, ratio),
        target=Target("at most", limit, " x"),
    )


def agreement(bench: Bench) -> Report:
    """Whether both sides compute the same losses in float32 from equal weights and images; networks of few layers."""
    what = "largest relative difference of the losses of a step, float32"
    target = Target("at most", 1e-4)
    if bench.reference is None:
        return Report((Outcome("agreement", what, target=target, remark="not run: there is no reference"),))
    outcomes = []
    for pair in PAIRS:
        options = step_options(bench, pair, small=True, **PLAIN)
        if pair == "swinir":
            options["network_g"]["drop_path_rate"] = 0.0  # drawn at random, by each side in its own way
        path = str(bench.folder / f"agreement_{pair}.pt")
        with bench.ours("step", options=options, threads=bench.threads) as own:
            ours = own.ask("losses_to", path=path, steps=2)
        with bench.reference_side("step", reference_settings(bench, options), {}) as other:
            theirs = other.ask("losses_from", path=path)
        (first, name), second = (_largest_difference(*each) for each in zip(theirs, ours, strict=True))
        outcomes.append(
            Outcome(
                row=f"agreement_{pair}",
                what=f"{what}, {NAMES[pair]}",
                reference=f"{name} {theirs[0][name]:.7g}",
                ours=f"{ours[0][name]:.7g}",
                figure=Spread(first, first, first),
                target=target,
                remark=f"after both have updated {second[0]:.1e} ({second[1]}); of {', '.join(theirs[0])}",
            )
        )
    return Report(tuple(outcomes))


def _largest_difference(theirs: dict[str, float], ours: dict[str, float]) -> tuple[float, str]:
    """The largest difference of equal names, relative to the reference's figure, and the name."""
    return max((abs(ours[name] - value) / max(abs(value), 1e-6), name) for name, value in theirs.items())


ROWS = {
    "agreement": agreement,
    **{f"step_{pair}": partial(step, pair=pair) for pair in PAIRS},
    **{f"memory_{pair}": partial(memory, pair=pair) for pair in PAIRS},
    "memory_checkpoint": memory_checkpointed,
}
