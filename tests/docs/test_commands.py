"""Every command that the pages show is taken by the command it calls. The slow test runs them in
`test_runs.py`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling import run
from scaling.commands.verbs import VERBS
from scaling.composition.compose import compose
from scaling.composition.words import read_options
from scaling.data.prepare.options import PrepareOptions
from scaling.export import ExportOptions
from scaling.inference.options import FillOptions, GenerateOptions
from scaling.laws.options import FitOptions, PredictOptions
from scaling.plan import FLAGS
from scaling.planner.machines.detect import resolve_cluster
from scaling.rehearsal.options import RUN_DEFAULTS, DrillOptions, split_words
from scaling.status import USAGE
from tests.support.documented import ROOT, Shown, commands_of, shown_commands

COMMANDS = shown_commands()
OTHERS_OWN = (
    "pip",
    "python3 -m venv",
    ".",
    "export",
    "chmod",
    "echo",
    "python -c",
    "python -m json.tool",
)
"""Commands of the shell and of other programs, which say nothing of ours."""
PLACEHOLDERS = {"...", "GROUP=OPTION", "KEY=VALUE", "COMMAND"}
"""Words that stand for others in a pattern of a command; what else it has is checked."""


def dry_run(words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command as a person at the terminal does: through Hydra, to the plan."""
    for path in ("books/one.txt", "books/b/two.txt"):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text("A text.\n" * 200)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["scaling.run", *words, "dry_run=true"])
    with pytest.raises(SystemExit) as end:
        run.main()
    assert not end.value.code


def score(words: list[str]) -> None:
    source = (ROOT / "scaling" / "planner" / "measured" / "score.py").read_text()
    assert all(f'"{word}"' in source for word in words if word.startswith("--"))


def plan(words: list[str]) -> None:
    if words[:1] == ["score"]:
        return score(words[1:])
    assert {word for word in words if word.startswith("-")} <= set(FLAGS)
    resolve_cluster(compose([word for word in words if not word.startswith("-")]))


def rehearse(words: list[str]) -> None:
    own, others = split_words(words)
    read_options(DrillOptions, own)
    compose([*RUN_DEFAULTS, *others])


def status(words: list[str]) -> None:
    assert all(not word.startswith("-") or word in USAGE for word in words)


OURS: dict[str, Callable[[list[str]], object]] = {
    "plan": plan,
    "rehearse": rehearse,
    "status": status,
    "prepare": lambda words: read_options(PrepareOptions, words),
    "generate": lambda words: read_options(GenerateOptions, words),
    "fill": lambda words: read_options(FillOptions, words),
    "export": lambda words: read_options(ExportOptions, words),
    "fit": lambda words: read_options(FitOptions, words),
    "predict": lambda words: read_options(PredictOptions, words),
}


def file_of(path: str) -> None:
    found = ROOT / path
    assert found.is_file(), f"{path} is not there"
    if path.endswith(".py"):
        compile(found.read_text(), path, "exec")
    else:
        subprocess.run(["bash", "-n", found], check=True)


def check(words: tuple[str, ...], place: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether there is a rule for this command; what it says is checked."""
    text = " ".join(words)
    kept = [word for word in words if word not in PLACEHOLDERS]
    if any(text == own or text.startswith(f"{own} ") for own in OTHERS_OWN) or text in (
        "python",
        "python -m",
        "make",
    ):
        return True
    if "COMMAND" in text:  # of any of ours
        return True
    if words[0] == "make":
        targets = (ROOT / "Makefile").read_text()
        assert all(f"\n{target}:" in targets for target in words[1:] if "=" not in target)
        return True
    if words[0].startswith(("tools/", "cluster/")):
        file_of(words[0])
        return True
    if (
        words[0] in ("python", "python3")
        and len(words) > 1
        and words[1].startswith(("tools/", "cluster/"))
    ):
        file_of(words[1])
        return True
    if words[:3] == ("python", "-m", "pytest"):
        assert all((ROOT / word).exists() for word in words[3:] if word.startswith("tests/"))
        return True
    if words[:2] == ("python", "-m") and words[2].startswith("scaling"):
        name, rest = (
            (kept[2].removeprefix("scaling."), kept[3:]) if "." in words[2] else (kept[3], kept[4:])
        )
    elif words[0] == "scaling":
        name, rest = kept[1], kept[2:]
    else:
        return False
    assert name in VERBS or name in OURS or name == "help", f"there is no command {name}"
    incomplete = len(kept) < len(words)
    if name == "run" and rest[:1] != ["--help"]:
        # Shards are what an earlier command of the page writes, so they are not there yet.
        unmade = incomplete or "data=shards" in rest
        compose(rest) if unmade else dry_run(rest, place, monkeypatch)
    elif name in OURS and rest and not incomplete:
        OURS[name](rest)
    return True


@pytest.mark.parametrize("shown", COMMANDS, ids=lambda shown: f"{shown.page}: {shown.text}")
def test_a_documented_command_is_taken(
    shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(shown.words, tmp_path, monkeypatch), (
        f"no rule of this file says what is to be checked of: {shown.text}"
    )


def test_commands_are_found_in_fences_and_prose() -> None:
    text = (
        "See `python -m scaling.run x=1`.\n```bash\nA=1 make run   # why\nscaling fit a='b c' \\\n "
        "   d=2 && echo 1 | cat\n```\n"
    )
    text += (
        "```\npython tools/x.py 3\n```\n```text\npython -m none\n```\n```\nmake x\nnot one\n```\n"
    )
    assert list(commands_of(text)) == [
        ("make", "run"),
        ("scaling", "fit", "a=b c", "d=2"),
        ("echo", "1"),
        ("cat",),
        ("python", "tools/x.py", "3"),
        ("python", "-m", "scaling.run", "x=1"),
    ]


def test_a_command_without_a_rule_or_with_a_wrong_word_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not check(("sbatch", "x"), tmp_path, monkeypatch)
    wrong = (
        "python -m scaling.fitt a=b",
        "make tset",
        "python tools/nothing.py",
        "python -m scaling.plan model=gpt_1c",
        "python -m scaling.status --jsn",
        "scaling generate rnu=x prompt=y",
        "python -m scaling.plan score x --csv",
    )
    for text in wrong:
        with pytest.raises(Exception, match=r"."):
            check(tuple(text.split()), tmp_path, monkeypatch)


def test_every_page_is_read() -> None:
    assert {
        "README.md",
        "docs/studies.md",
        "docs/data.md",
        "docs/planner.md",
        "docs/studies/isoflop_cpu/README.md",
    } <= {shown.page for shown in COMMANDS}
