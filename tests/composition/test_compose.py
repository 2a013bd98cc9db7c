"""What a user is told about each kind of mistake, by the library and by the command."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from scaling.composition.compose import compose
from scaling.composition.explain import _QUOTED
from scaling.composition.known import refuse_mistyped, where_set
from scaling.composition.shorthand import in_full
from scaling.config.run_config import RunConfig, conf_dir
from scaling.errors import ConfigError

TYPED = "from the command line: "
MISTAKES = {
    "an option that is not there": (
        "model=gpt_nanoo",
        "model=gpt_nanoo is not an option of model",
        "Did you mean gpt_nano or",
    ),
    "a number for an option": ("optim=3", "optim=3 is not an option of optim", "There are: adamw."),
    "an option of a nested group": (
        "cluster/device=H100",
        "cluster/device=H100 is not an option",
        "Did you mean H100-80GB?",
    ),
    "a group that is not there": (
        "modle=gpt_nano",
        "there is no key 'modle'",
        "Did you mean model?",
    ),
    "a key that is not there": (
        "train.ntokens=3",
        "there is no key 'train.ntokens'",
        "Did you mean train.n_tokens",
    ),
    "a key that is not there, added": (
        "+optim.lrr=1",
        "there is no key 'optim.lrr'",
        "Did you mean optim.lr",
    ),
    "a wrong type": (
        "optim.lr=fast",
        "optim.lr=fast: input should be a valid number",
        "optim.lr is: peak learning rate.",
    ),
    "a fraction for a whole number": (
        "model.n_layers=2.5",
        "model.n_layers=2.5: input should be a valid integer",
        "blocks",
    ),
    "a list for a number": (
        "train.seq_len=[1,2]",
        "train.seq_len=[1, 2]: [1, 2] is not a count",
        "tokens per sequence",
    ),
    "a mapping for a text": (
        "data.path={a:1}",
        "data.path={'a': 1}: input should be a valid string",
        "data.path is: ",
    ),
    "a count that is none": (
        "train.n_tokens=many",
        "'many' is not a count such as 200_000, 2M or 1.5B",
        "token budget",
    ),
    "a share that is none": (
        "schedule.warmup_tokens=x%",
        "schedule.warmup_tokens=x%",
        "linear warm-up",
    ),
    "too small": ("optim.lr=-1", "optim.lr=-1: input should be greater than 0", "optim.lr is: "),
    "too large": (
        "model.dropout=1",
        "model.dropout=1: input should be less than 1",
        "model.dropout is: ",
    ),
    "infinite": ("optim.lr=inf", "optim.lr=inf: input should be a finite number", "optim.lr is: "),
    "a seed beyond 63 bits": (
        "train.seed=9223372036854775808",
        "it is over 9223372036854775807",
        "train.seed is: ",
    ),
    "a choice that is not there": (
        "logger.kind=mlflow",
        "input should be 'none', 'wandb' or 'tensorboard'",
        "logger.kind is: ",
    ),
    "no value": ("optim.lr=???", "optim.lr has no value", "Give one: optim.lr=..."),
    "no equals sign": ("optim.lr", "'optim.lr' cannot be read", "Write GROUP=OPTION or KEY=VALUE"),
    "a key alone, without its group": ("lr=3e-4", "there is no key 'lr'", "Did you mean optim.lr?"),
    "an option alone": (
        "gpt_nano",
        "'gpt_nano' cannot be read",
        "Write GROUP=OPTION or KEY=VALUE, as model=gpt_nano.",
    ),
    "an open quote": ("optim.lr='1", "cannot be read", "Put the value in quotes"),
    "an equals sign": ("run.name=a=b", "'run.name=a=b' cannot be read", """'run.name="a=b"'"""),
    "a hash": ("run.name=#1", "'run.name=#1' cannot be read", """'run.name="#1"'"""),
    "a tilde inside": ("run.name=a~b", "'run.name=a~b' cannot be read", """'run.name="a~b"'"""),
    "letters beyond ASCII": (
        "run.name=été",
        "'run.name=été' cannot be read",
        """'run.name="été"'""",
    ),
    "an apostrophe": (
        "run.name=it's",
        "cannot be read",
        "commas, brackets, braces, quotes, blanks at an end, letters beyond ASCII and any of =",
    ),
    "a double quote": ('run.name=5"', "cannot be read", "run.name="),
    "a brace": ("run.name=a}b", "cannot be read", """'run.name="a}b"'"""),
    "several values": (
        "run.name=a,b",
        "'run.name=a,b' gives several values to one run",
        """'run.name="a,b"'. As several""",
    ),
    "a key that is none": ("run.näme=a", "'run.näme=a' cannot be read", "a KEY is made of letters"),
    "an unknown reference": ("optim.lr=${foo}", "optim.lr: Interpolation key 'foo' not found", ""),
}
CROSS = {
    "heads": (
        ["model.n_heads=3"],
        "n_heads=3 does not divide d_model=128",
        f"{TYPED}model.n_heads=3",
    ),
    "data without a path": (
        ["data=text_files"],
        "data=text_files needs data.path",
        f"{TYPED}data=text_files",
    ),
    "bytes with a vocabulary": (
        ["tokenizer=byte", "tokenizer.vocab_size=300"],
        "exactly 257",
        "tokenizer.vocab_size=300",
    ),
    "auto with a value": (
        ["layout.dp=2"],
        "layout.dp is set, but layout=auto leaves it to the planner",
        f"{TYPED}layout.dp=2",
    ),
    "vocabulary": (
        ["model.vocab_size=100"],
        "model.vocab_size=100 is smaller than tokenizer",
        "model.vocab_size=100",
    ),
    "odd heads": (["model.d_head=33"], "position=rope rotates pairs", ""),
    "objective": (["objective=masked_lm"], "objective=masked_lm does not fit model.family=gpt", ""),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_a_way_out(mistake: str) -> None:
    override, what, fix = MISTAKES[mistake]
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert what in caught.value.what
    assert fix in (caught.value.fix or "")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_answered_before_hydra_is_answered_alike(mistake: str) -> None:
    word = MISTAKES[mistake][0]
    with pytest.raises(ConfigError) as late:
        compose([word])
    try:
        refuse_mistyped(in_full([word]))
    except ConfigError as error:
        early = str(error)
    else:
        return  # left to Hydra
    assert early == str(late.value)


@pytest.mark.parametrize(
    "words",
    [
        ["optim.lr=1e-3,3e-4", "-m"],
        ["-m", "+experiment=isoflop_cpu"],
        ["model=gpt_nano.yaml", "study=null", "cluster/device=H100-80GB"],
        ["model=glob(gpt_*)", "optim.lr='1'", "~train.eval_every", "++train.seed=1"],
        ["hydra.job.chdir=false", "hydra/launcher=basic"],
        ["data.components.0.weight=1", "study.space.anything=1", "data=mixture"],
        ["--config-dir", "here", "model=mine"],
        ["hydra.searchpath=[file:///x]", "model=mine"],
        ["--multi", "--cfg=job", "-cn", "mine"],
    ],
)
def test_what_hydra_may_understand_is_left_to_it(words: list[str]) -> None:
    refuse_mistyped(words)


@pytest.mark.parametrize("path", ["~/runs", "~", "~nobody/runs", "~/été/x=1", "~/a~b#c"])
def test_a_path_at_home_needs_no_quotes(path: str) -> None:
    assert compose([f"run.root={path}"]).run.root == path
    assert compose([f"run.root='{path}'"]).run.root == path
    assert compose([f"data.cache_dir={path}"]).data.cache_dir == path


@pytest.mark.parametrize(
    "override", ["optim.lr=-1", "train.ntokens=3", "train.seq_len=abc", "optim.lr=${foo}"]
)
def test_the_origin_is_named(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["model=gpt_tiny", override, "train.seed=3"])
    assert caught.value.where == TYPED + override


def _takes(text: str) -> bool:
    """Whether the text is taken as it stands, without quotes."""
    try:
        return OverridesParser.create().parse_override(f"run.root={text}").value() == text
    except HydraException:
        return False


def test_the_hint_names_what_needs_quotes_and_nothing_else() -> None:
    said = _QUOTED.removeprefix("So must commas, brackets, braces, quotes, blanks at an end, ")
    named = set(",[](){}'\"") | set(said.removesuffix("."))
    refused = {letter for letter in string.punctuation if not _takes(f"/tmp/a{letter}b")}
    assert refused == named & set(string.punctuation)
    assert not _takes("/tmp/é")
    assert _takes("/tmp/a b")
    assert not _takes("/tmp/a ")


@pytest.mark.parametrize(
    ("given", "where"),
    [
        (["checkpoint.keep_steps=[5,5,-1]"], f"{TYPED}checkpoint.keep_steps=[5,5,-1]"),
        (
            ["data=mixture", "data.components=[{name: a, weight: x, kind: python_stdlib}]"],
            f"{TYPED}data.components=[{{name: a, weight: x, kind: python_stdlib}}]",
        ),
    ],
)
def test_the_origin_of_an_element_is_that_of_its_list(given: list[str], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["model=gpt_nano", *given])
    assert caught.value.where == where


def test_the_origin_is_the_nearest_that_was_given() -> None:
    key, sheet = "cluster.device.memory_gb", "cluster/device=T4-16GB"
    assert "conf/cluster/device/T4-16GB.yaml" in (where_set(key, ["cluster=8xT4", sheet]) or "")
    assert "conf/cluster/local.yaml" in (where_set(key, ["cluster=local"]) or "")


@pytest.mark.parametrize("case", CROSS)
def test_a_combination_is_refused_with_its_origin(case: str) -> None:
    overrides, what, where = CROSS[case]
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert what in caught.value.what
    assert where in (caught.value.where or "")


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"model\.dropout=2: .*1 more: optim\.lr=-1"):
        compose(["optim.lr=-1", "model.dropout=2"])


def environment(place: Path) -> dict[str, str]:
    return os.environ | {"HOME": str(place / "home"), "SCALING_CACHE": str(place / "cache")}


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "scaling.run", *words]
    return subprocess.run(
        argv, capture_output=True, text=True, cwd=cwd, env=environment(cwd), timeout=60
    )


BATCH = """
import contextlib, io, json, sys
from scaling import run

def told(words):
    sys.argv = ["scaling.run", *words]
    code, out, err = None, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run.main()
        except SystemExit as end:
            code = end.code
    return [code, err.getvalue()]

print(json.dumps([told(words) for words in json.loads(sys.stdin.read())]))
"""


def test_the_command_says_one_thing_and_touches_nothing(tmp_path: Path) -> None:
    cases = [[override] for override, _, _ in MISTAKES.values()] + [
        overrides for overrides, _, _ in CROSS.values()
    ]
    cases += [
        ["cluster=8xA100"],
        ["run.name=a/b"],
        ["run.root=s3://bucket/runs"],
        ["layout=manual", "layout.dp=7"],
    ]
    # All in one process that the interpreter starts once: most of a start is imports.
    done = subprocess.run(
        [sys.executable, "-c", BATCH],
        input=json.dumps(cases),
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words, (code, error) in zip(cases, json.loads(done.stdout), strict=True):
        assert code == 2, (words, error)
        assert error.startswith(("ConfigError: ", "PlanError: ")), (words, error)
        assert "Traceback" not in error
        assert len(error.splitlines()) <= 3, error
    assert list(tmp_path.iterdir()) == []


def test_the_process_ends_with_code_two(tmp_path: Path) -> None:
    done = command("train.ntokens=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("ConfigError: there is no key 'train.ntokens'")
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_is_shown_on_request(tmp_path: Path) -> None:
    done = command("optim.lr=-1", "scaling.debug=true", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr


def test_help_lists_every_group_and_key(tmp_path: Path) -> None:
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    words = done.stdout.split()
    text = " ".join(words)  # a long description wraps
    for path in conf_dir().rglob("[!_]*.yaml"):
        if path.parent.parent == conf_dir():
            assert path.stem in words, path
    for name, field in RunConfig.model_fields.items():
        for key, inner in getattr(field.annotation, "model_fields", {}).items():
            if not hasattr(inner.annotation, "model_fields"):
                assert done.stdout.count(f"\n  {name}.{key}=") == 1
                assert inner.description, f"{name}.{key} is not explained"
                assert " ".join(inner.description.split()) in text
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_the_plan_and_touches_nothing(tmp_path: Path) -> None:
    done = command("model=gpt_1b", "cluster=8xA100", "dry_run=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Plan of gpt_1b" in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
