"""Whether `amp: auto` chooses well: the quickstart's MCAD-KD step against the faster of float32 and bf16."""

from __future__ import annotations

import statistics

from basicsr.utils.timing import ratios, spread
from benchmarks.bench import Bench
from benchmarks.options import shipped_options
from benchmarks.table import Outcome, Report, Target, short

_SIDE, _SCALE, _BATCH = 48, 2, 8  # as options/base/quickstart.yml has it
_STEPS = 5  # in a round of this row, whose steps are short
_WITHIN = 1.05  # two equal steps differ by as much


def auto(bench: Bench) -> Report:
    """Times the step in all three in one process."""
    images = bench.pairs("quickstart", 2 * _BATCH, (_SIDE, _SIDE), _SCALE)
    options = shipped_options("quickstart_mcadkd", images, _BATCH, num_gpu=0)
    with bench.ours("precisions", options=options, threads=bench.threads) as worker:
        times = worker.ask("run", rounds=_STEPS * bench.rounds)
        chosen = worker.ask("chosen")
    faster = min(("none", "bf16"), key=lambda amp: statistics.median(times[amp]))
    names = {"none": "float32", "bf16": "bf16"}
    took = ", ".join(f"{names[amp]} {short(spread(times[amp]).median)} s" for amp in names)
    return Report(
        (
            Outcome(
                row="auto",
                what=f"the quickstart's MCAD-KD step under amp: auto, to the faster of both ({names[faster]})",
                reference=took,
                ours=f"{short(spread(times['auto']).median)} s",
                figure=ratios(times["auto"], times[faster]),
                target=Target("at most", _WITHIN),
                remark=chosen,
            ),
        )
    )


ROWS = {"auto": auto}
