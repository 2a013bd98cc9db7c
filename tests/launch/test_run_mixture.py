"""A run on a mixture: its shares are recorded, and a kill and other loader threads leave its curve
as it was."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.runs import ONE_WORKER, Workplace, curve


@pytest.fixture
def mixture(workplace: Workplace, tmp_path: Path) -> tuple[str, ...]:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "code.py").write_text("def f(x):\n    return x + 1\n" * 200)
    (folder / "more.py").write_text("class A:\n    pass\n" * 200)
    prose = (
        f"{{name: prose, weight: 3, kind: text_files, path: '{workplace.text.replace('*', '0*')}'}}"
    )
    code = f"{{name: code, weight: 1, kind: documents, path: {folder}}}"
    return (
        *ONE_WORKER,
        "train.n_tokens=100_000",
        "data=mixture",
        "data.path=null",
        f"data.components=[{prose}, {code}]",
    )


def test_a_killed_run_on_a_mixture_ends_like_one_that_was_not(
    workplace: Workplace, mixture: tuple[str, ...], tmp_path: Path
) -> None:
    whole = workplace.finish(*mixture, root=tmp_path / "whole")
    last = [record for record in whole.records() if "train/loss" in record][-1]
    assert last["data/share/prose"] == pytest.approx(0.75, abs=0.001)
    assert last["data/share/prose"] + last["data/share/code"] == 1
    assert last["data/epochs/code"] > last["data/epochs/prose"] > 0
    killed = workplace.start(*mixture, root=tmp_path / "killed")
    killed.wait_for_step(100)
    killed.signal(signal.SIGKILL)
    killed.process.wait()
    again = workplace.finish(*mixture, "data.loader_workers=3", root=tmp_path / "killed")
    assert "Resuming after step" in again.output
    assert curve(again) == curve(whole)
    shares = [
        {k: v for k, v in r.items() if k.startswith("data/")}
        for run in (whole, again)
        for r in run.records()
    ]
    assert shares[: len(shares) // 2] == shares[len(shares) // 2 :]
