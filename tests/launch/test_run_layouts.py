"""A run of the command that moves from one layout to another under way ends as one that never
did."""

from __future__ import annotations

import signal

import numpy as np

from tests.support.runs import FOLLOWED_STEPS, Run, Workplace, fp32_rtol

N_STEPS = 60


def test_a_run_killed_under_tensor_parallelism_goes_on_in_a_pipeline(
    workplace: Workplace, single: Run
) -> None:
    root, budget = workplace.root / "moved", f"train.n_tokens={N_STEPS * 512}"
    first = workplace.start("layout=tp2", budget, root=root)
    first.wait_for_step(22)
    first.signal(signal.SIGKILL)
    first.wait()
    moved = workplace.finish("layout=pp2", budget, root=root)
    assert "Resuming after step" in moved.output
    records = [record for record in moved.records() if "train/loss" in record]
    assert [record["step"] for record in records] == list(range(1, N_STEPS + 1))
    expected = [record["train/loss"] for record in single.records() if "train/loss" in record][
        :FOLLOWED_STEPS
    ]
    found = [record["train/loss"] for record in records][:FOLLOWED_STEPS]
    np.testing.assert_allclose(found, expected, rtol=fp32_rtol(FOLLOWED_STEPS))
