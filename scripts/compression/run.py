"""All steps of a run, in their order."""

from __future__ import annotations

import time

from compression.comparing import compare
from compression.findings import Findings
from compression.pipeline import STUDENT, Pipeline
from compression.progress import duration
from compression.reporting import write_report_files
from compression.shipping import Shipping


def execute(pipeline: Pipeline) -> None:
    """Does what is not done of a run, and writes its report.

    Raises:
        Stopped: a signal came.
        UserError: one of its kinds, for anything that the user can mend.
    """
    started = time.monotonic()
    names, costs = pipeline.choose()  # first: a budget that nothing meets is told before long work
    evaluations = pipeline.judge_teacher()
    pipeline.say(f"teacher: {pipeline.told(evaluations['teacher'])}")
    order = pipeline.search(names)
    winner = pipeline.by_name[order[0]["name"]]
    pipeline.say(f"chosen: {winner.label}")
    weights = pipeline.distil(winner)
    evaluations[STUDENT] = pipeline.judge(STUDENT, weights, pictures=True)
    pipeline.say(f"student: {pipeline.told(evaluations[STUDENT])}")
    shipping = Shipping(pipeline, winner, weights)
    shipping.train_quantised()
    evaluations |= shipping.judge_quantised()
    files = shipping.ship(evaluations[STUDENT])
    findings = Findings(
        pipeline=pipeline,
        costs=costs,
        order=order,
        winner=winner,
        evaluations=evaluations,
        files=files,
        teacher_latency=shipping.teacher_latency,
        sensitivity=shipping.sensitivity(),
        failure=shipping.failure,
        comparison=compare(pipeline, winner),
    )
    path = write_report_files(findings)
    pipeline.say(f"done in {duration(time.monotonic() - started)}: {path}")
