"""Whether other programs use our cores: worked out from given counters; the kernel's own only grow."""

from __future__ import annotations

import os

import pytest

from basicsr.utils.timing import CpuTimes, cores_of_others, cpu_times, load_between


def test_what_others_took_is_what_the_cores_did_less_what_we_did():
    before, after = CpuTimes(100.0, 5.0, 0.0, 2), CpuTimes(107.0, 9.0, 4.0, 2)
    assert cores_of_others(before, after) == pytest.approx(0.75)
    assert cores_of_others(before, CpuTimes(103.0, 9.0, 4.0, 2)) == 0.0  # the counters are coarse
    assert cores_of_others(before, CpuTimes(101.0, 5.0, 0.1, 2)) is None  # too short for them
    assert cores_of_others(before, CpuTimes(100.0, 9.0, 4.0, 2)) is None  # a system that does not count
    assert cores_of_others(None, after) is None
    assert load_between(before, after, 2) == "other programs took 0.8 of 2 cores meanwhile"
    assert load_between(before, after, 1) == load_between(None, after, 1) == ""


def test_cores_that_we_leave_are_for_others():
    def message(others: float, cores: int, threads: int) -> str:
        return load_between(CpuTimes(0.0, 0.0, 0.0, cores), CpuTimes(others, 0.0, 1.0, cores), threads)

    assert message(0.2, 2, 2) == message(6.2, 8, 2) == ""
    assert message(0.3, 2, 2) == "other programs took 0.3 of 2 cores meanwhile"
    assert message(6.3, 8, 2) == "other programs took 6.3 of 8 cores meanwhile"
    assert message(0.3, 1, 4) == "other programs took 0.3 of 1 cores meanwhile"


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="needs Linux")
def test_counters_of_the_kernel_grow_with_our_own_work():
    before = cpu_times()
    sum(range(300_000))
    after = cpu_times()
    assert after.own > before.own and after.at > before.at and after.busy >= before.busy
    assert after.cores == len(os.sched_getaffinity(0))
