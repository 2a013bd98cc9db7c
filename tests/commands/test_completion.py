"""Tab completion of `scaling`: in process, and once in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scaling import completion
from scaling.commands import completion as words
from scaling.commands.completion import candidates
from scaling.commands.verbs import VERBS


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("scaling r", {"run ", "rehearse "}),
        ("scaling help ge", {"generate "}),
        ("scaling run mod", {"model=", "model."}),
        (
            "scaling run model=gpt_1",
            {
                "model=gpt_10m ",
                "model=gpt_125m ",
                "model=gpt_13b ",
                "model=gpt_175b ",
                "model=gpt_1b ",
            },
        ),
        ("scaling run optim.lr=1 train.se", {"train.seq_len=", "train.seed="}),
        ("scaling run cluster.dev", {"cluster.device.", "cluster.devices_per_node="}),
        ("scaling run -m model=gpt_nano,gpt_t", {"model=gpt_nano,gpt_tiny"}),
        ("scaling run +experiment=lad", {"+experiment=ladder_cpu "}),
        ("scaling run dry_run=", {"dry_run=true ", "dry_run=false "}),
        ("scaling run train.on_spike=ig", {"train.on_spike=ignore "}),
        ("scaling run data.path='a b", set()),
        ("scaling plan --r", {"--refused "}),
        ("scaling fit ta", {"table="}),
        ("scaling fit table=x.csv ta", set()),
        ("scaling fit table=~/la", set()),
        ("scaling fit curve=", {"curve=akima ", "curve=parabola "}),
        ("scaling predict js", {"json="}),
        ("scaling generate from=x met", {"method="}),
        ("scaling completion b", {"bash "}),
        ("scaling nothing x", set()),
    ],
)
def test_the_words_that_may_follow(line: str, found: set[str]) -> None:
    assert set(candidates(line)) == found


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_offers_something(verb: str) -> None:
    assert f"{verb} " in candidates("scaling ")
    assert candidates(f"scaling {verb} ")
    assert candidates(f"scaling {verb} --")


def test_names_of_runs_are_offered(tmp_path: Path) -> None:
    (tmp_path / "gpt_nano-00c0ffee").mkdir()
    (tmp_path / "gpt_nano-00c0ffee" / "config.yaml").touch()
    asked = f"run.root={tmp_path}"
    assert candidates(f"scaling generate {asked} from=gpt") == ["from=gpt_nano-00c0ffee "]
    assert candidates(f"scaling status {asked} gp") == ["gpt_nano-00c0ffee "]
    assert candidates(f"scaling generate run.root={tmp_path}/none from=") == []


def test_the_script_is_printed_and_nothing_else_is_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert completion.main(["bash"]) == 0
    assert capsys.readouterr().out == words.BASH
    assert completion.main(["tcsh"]) == 2
    assert completion.main([]) == 2
    assert "There is: bash" in capsys.readouterr().err
    assert completion.main(["words", "scaling run --help mod"]) == 0
    assert capsys.readouterr().out.splitlines() == ["model=", "model."]


def test_bash_completes(tmp_path: Path) -> None:
    """Readline splits words at = and :, so what bash is given is only the rest."""
    bash = shutil.which("bash")
    assert bash is not None
    program = tmp_path / "scaling"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m scaling "$@"\n')
    program.chmod(0o755)
    script = """
eval "$(scaling completion bash)"
complete -p scaling
ask() {
    COMP_LINE="$1"; COMP_POINT=${#1}; COMPREPLY=()
    _scaling_complete scaling
    printf '[%s]' "${COMPREPLY[@]}"; echo
}
ask "scaling stat"
ask "scaling run model=t5_b"
ask "scaling run optim.l"
"""
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [bash, "--norc", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.splitlines()[1:] == ["[status ]", "[t5_base ]", "[optim.lr=]"], (
        done.stdout + done.stderr
    )
    assert "_scaling_complete scaling" in done.stdout.splitlines()[0]
