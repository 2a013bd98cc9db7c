"""The stages of a start: seconds since the command, across processes, in order."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from scaling.runs.startup import STAGES, begin, mark, since_command


def test_the_command_is_when_the_process_began() -> None:
    program = (
        "import time; time.sleep(0.5); from scaling.runs.startup import begin; "
        "print(begin()['command'])"
    )
    before_s = time.time()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    # /proc counts in ticks of 10 ms, from a boot whose time is known as exactly
    assert before_s - 0.05 <= float(done.stdout) <= time.time() - 0.5


def test_stages_are_told_in_their_order_and_those_not_reached_are_absent() -> None:
    marks = begin()
    for stage in ("first_step", "composed"):
        mark(marks, stage)
    told = since_command(marks)
    assert list(told) == ["composed", "first_step"]
    assert told["composed"] >= told["first_step"] > 0


def test_only_known_stages_are_marked() -> None:
    with pytest.raises(AssertionError):
        mark(begin(), "lunch")
    assert list(STAGES)[-1] == "first_step"
