"""Compares distillation methods under equal conditions: trains a student by each, with several seeds, and tabulates.

    python scripts/compare_methods.py -opt options/compare/quickstart_x2.yml --methods scratch kd fakd \\
        --seeds 0 1 2 --name first_look --teacher-opt options/train/quickstart_teacher.yml

Within a seed all methods start from the same student and see the same batches. Interrupted, the same command goes on
where it stopped. results/NAME then holds study.md, study.csv, study.json and the options of each run:
docs/comparing_methods.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 0)]

from basicsr.engine.process.command import quiet_start, run_command
from basicsr.utils.process_settings import shorten_spinning

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds
    shorten_spinning()

import torch
from study.execution import Trainings, check_fits, load_teacher, say, threads_for, train_teacher, write_options
from study.plan import Study, plan_study
from study.records import Record, State, state_of, weights_of
from study.tables import claim_results, write_files
from subprocesses import Stopped, exclusive

from basicsr.config.schema import Options
from basicsr.engine.precision_choice import Choice, choose_for_several, read_choice
from basicsr.utils.errors import OptionsError

_DRY = {"start": "would start", "resume": "would go on", "done": "done already"}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("-opt", "--opt", type=Path, required=True, metavar="FILE", help="base options: data, networks, schedule")
    add(
        "--methods",
        nargs="+",
        required=True,
        metavar="METHOD",
        help="names of the base's own pieces or in options/methods, or paths",
    )
    add("--seeds", nargs="+", type=int, required=True, metavar="SEED", help="whole numbers of at least 0")
    add("--name", required=True, help="of the study: experiments/studies/NAME, results/NAME")
    add("--jobs", type=int, default=1, metavar="N", help="trainings at a time (1)")
    add("--teacher-opt", type=Path, metavar="FILE", help="train the teacher first, once, by these options")
    add("--reference", metavar="METHOD", help="what the others are compared with (scratch, else the first)")
    add("--dry-run", action="store_true", help="only check, and print the runs")
    add(
        "--force_yml",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="set options of all runs: train:total_iter=1000 ...",
    )
    return parser.parse_args(argv)


def plan(arguments: argparse.Namespace) -> tuple[Study, tuple[Options, State] | None]:
    """The study, and the teacher to be trained first with what is left to do of it."""
    if arguments.jobs < 1:
        raise OptionsError(f"--jobs {arguments.jobs}: must be at least 1")
    teacher = load_teacher(arguments.teacher_opt) if arguments.teacher_opt is not None else None

    def planned(precision: Choice | None) -> Study:
        return plan_study(
            base=arguments.opt,
            name=arguments.name,
            methods=arguments.methods,
            seeds=arguments.seeds,
            reference=arguments.reference,
            overrides=arguments.force_yml,
            teacher=weights_of(teacher[0]) if teacher is not None else None,
            teacher_is_there=teacher is None or teacher[1] == "done",
            precision=precision,
        )

    study = planned(None)
    if study.open_runs and (precision := read_choice(study.precision_file)) is not None:
        study = planned(precision)
    return study, teacher


def choose_once(study: Study, threads: int) -> None:
    """Chooses what `amp: auto` is in all runs, by the networks of one with a teacher, and keeps it."""
    options = next((run.options for run in study.open_runs if run.teacher is not None), study.open_runs[0].options)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    choose_for_several(options, study.precision_file)
    torch.set_num_threads(before)


def show(study: Study, teacher: tuple[Options, State] | None, jobs: int) -> None:
    """Prints what would be done."""
    if teacher is not None:
        print(f"teacher {teacher[0].name}: {_DRY[teacher[1]]}")
    for number, run in enumerate(study.runs, 1):
        state, _ = state_of(study, run)
        print(f"[{number}/{len(study.runs)}] {run.label}: {_DRY[state]}, {run.options.train.total_iter} iterations")
    for remark in study.remarks:
        print(remark)
    print(f"{jobs} at a time, {threads_for(jobs)} thread(s) each; runs in {study.folder}, tables in {study.results}")


def compare(arguments: argparse.Namespace) -> int:
    """Does the study; returns the exit code: that of the first run that failed, or 0.

    Raises:
        Stopped: a signal came.
        UserError: one of its kinds, for anything that the user can mend.
    """
    study, teacher = plan(arguments)
    if arguments.dry_run:
        show(study, teacher, arguments.jobs)
        return 0
    busy = f"another process is working on study {study.name}; wait for its end"
    with exclusive(study.folder / ".lock", busy):
        claim_results(study)
        if teacher is not None and teacher[1] != "done":
            say(f"teacher {teacher[0].name}: {'starts' if teacher[1] == 'start' else 'goes on'}")
            train_teacher(arguments.teacher_opt, *teacher)
            study, _ = plan(arguments)
        if study.open_runs:
            choose_once(study, threads_for(arguments.jobs))
            study, _ = plan(arguments)
        for remark in study.remarks:
            say(remark)

        def changed(records: Mapping[tuple[str, int], Record]) -> None:
            write_files(study, records)

        check_fits(study)
        trainings = Trainings(study, arguments.jobs, changed, say)  # refuses before anything is written
        write_options(study)
        say(f"{trainings.jobs} at a time, {trainings.threads} thread(s) each")
        trainings.execute()
        table = study.results / "study.md"
        failed = [f"{key[0]} seed {key[1]}" for key, record in trainings.records.items() if record.status == "failed"]
        print(f"\n{table.read_text('utf-8')}\n{table}", flush=True)
        if failed:
            print(f"{len(failed)} of {len(study.runs)} runs failed: {', '.join(failed)}", file=sys.stderr, flush=True)
    return trainings.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse(argv)
    try:
        return compare(arguments)
    except (KeyboardInterrupt, Stopped):
        print("stopped; to go on where it stopped, give the same command again", file=sys.stderr, flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(run_command(main))
