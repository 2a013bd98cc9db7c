"""What every command answers at once: help, the version, and words that were meant otherwise."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import scaling
from scaling import __main__
from scaling.commands.verbs import VERBS
from scaling.composition.known import keys
from scaling.composition.words import read_options
from scaling.config.spelling import near_keys
from scaling.laws.options import FitOptions, PredictOptions

Command = Callable[..., tuple[int, str, str]]
NEEDED = {
    "prepare": "inputs",
    "generate": "from",
    "fill": "from",
    "export": "from",
    "fit": "give one of table",
    "predict": "fit",
}
"""Commands that do nothing without words, and what they say is missing."""
KEY_OF = {
    "run": "model",
    "plan": "model",
    "rehearse": "model",
    "status": "run.root",
    "prepare": "out",
    "fit": "table",
    "generate": "from",
    "fill": "from",
    "export": "from",
}


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Run a command by its name in an empty directory: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scaling", *words])
        try:
            code = __main__.main()
        except SystemExit as end:
            code = end.code  # type: ignore[assignment]
        out, err = capsys.readouterr()
        return code or 0, out, err

    return call


@pytest.mark.parametrize("name", VERBS)
def test_every_command_tells_its_version_and_its_help(command: Command, name: str) -> None:
    assert command(name, "--version") == (0, f"scaling {scaling.__version__}\n", "")
    told = command(name, "--help")
    assert told[0] == 0
    assert f"python -m scaling.{name}" in told[1]
    assert command(name, "-h") == command(name, "help") == command("help", name) == told


@pytest.mark.parametrize("name", [verb for verb in VERBS if verb != "completion"])  # it has no keys
def test_a_flag_that_was_meant_for_a_key_is_answered_with_the_key(
    command: Command, name: str
) -> None:
    key = KEY_OF.get(name, "run")
    key = "fit" if name == "predict" else key
    for words in ([f"--{key}=abc"], [f"--{key}", "abc"]):
        code, out, err = command(name, *words)
        assert (code, out) == (2, "")
        assert f"there is no flag --{key}" in err
        assert f"{key}=abc" in err
        assert "--help" in err


@pytest.mark.parametrize("name", NEEDED)
def test_a_command_without_words_says_what_it_needs(command: Command, name: str) -> None:
    code, out, err = command(name)
    assert (code, out) == (2, "")
    assert NEEDED[name] in err


def test_the_program_itself_lists_its_commands(command: Command) -> None:
    told = command()
    assert told == command("help") == command("--help") == command("-h")
    assert told[0] == 0
    assert all(f"\n  {name} " in told[1] for name in VERBS)
    assert command("--version")[1] == f"scaling {scaling.__version__}\n"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("rnu", "Did you mean run?"),
        ("train", "There are: run, plan"),
        ("lr=1", "python -m scaling run lr=1"),
    ],
)
def test_a_command_that_is_none_is_refused(command: Command, word: str, said: str) -> None:
    code, _, err = command(word)
    assert code == 2
    assert f"there is no command {word!r}" in err
    assert said in err


def test_every_command_has_a_module() -> None:
    package = Path(scaling.__file__).parent
    others = {"__init__", "__main__"}
    mains = {
        path.stem for path in package.glob("*.py") if "\ndef main(" in path.read_text()
    } - others
    assert set(VERBS) == mains
    assert all(importlib.util.find_spec(f"scaling.{name}") for name in VERBS)


def test_flags_of_hydra_that_lack_something_are_our_errors(command: Command) -> None:
    for flag, said in (
        ("--config", "ambiguous"),
        ("--config-dir", "expected one argument"),
        ("--cfg=x", "invalid choice"),
    ):
        code, _, err = command("run", flag)
        assert code == 2
        assert err.startswith("ConfigError: ")
        assert said in err


@pytest.mark.parametrize(
    ("key", "full"),
    [
        ("lr", "optim.lr"),
        ("n_tokens", "train.n_tokens"),
        ("seed", "train.seed"),
        ("device.kind", "cluster.device.kind"),
        ("batch_size", "train.global_batch_size"),
        ("nlayers", "model.n_layers"),
        ("optim.learning_lr", "optim.lr"),
        ("modle", "model"),
    ],
)
def test_a_part_of_a_key_offers_the_whole(key: str, full: str) -> None:
    assert full in near_keys(key, list(keys()))


def test_every_path_may_begin_at_home(
    monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_options(FitOptions, ["study=~/runs", "out=~/laws"]).out == f"{tmp_path}/laws"
    assert read_options(PredictOptions, ["fit=~/laws", "c=1"]).fit == f"{tmp_path}/laws"
    assert (
        command("plan", "model=gpt_1b", "cluster=8xH100", "plan.output=~/p.json", "plan.top=1")[0]
        == 0
    )
    assert (tmp_path / "p.json").is_file()
    assert (
        f"{tmp_path}/none.csv" in command("plan", "cluster=8xH100", "plan.calibrate=~/none.csv")[2]
    )


def test_a_mistake_is_told_without_torch_ray_and_deepspeed(tmp_path: Path) -> None:
    """One process checks all mistakes, because what a mistake loads is what it costs."""
    code = """
import sys
from scaling import __main__
for words in (["run", "lr=1"], ["run", "+lr=1"], ["run", "--lr=1"], ["run", "model=x"],
              ["run", "gpt_nano"], ["plan", "lr=1"], ["plan", "model=x"]):
    sys.argv = ["scaling", *words]
    try:
        code = __main__.main()
    except SystemExit as end:
        code = end.code
    assert code == 2, words
    assert "hydra" not in sys.modules, words
for words in (["run", "run.name=a=b"],
              ["generate", "from=x", "prompt=a"], ["fill", "from=x", "prompt=a"],
              ["export", "from=x", "to=y"], ["prepare", "x=1"],
              ["fit", "x=1"], ["predict", "x=1"], ["status", "x"]):
    sys.argv = ["scaling", *words]
    try:
        code = __main__.main()
    except SystemExit as end:
        code = end.code
    assert code == 2, words
heavy = {"torch", "ray", "deepspeed", "wandb", "matplotlib", "tokenizers", "scipy"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr
