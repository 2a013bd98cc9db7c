"""No field of the configuration takes a value of another kind, or a number without sense, and none
ends in a traceback."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import pytest
from pydantic import ValidationError

from scaling.composition.compose import compose
from scaling.composition.words import read_options
from scaling.config.recorded import RECORDED
from scaling.config.run_config import RunConfig
from scaling.config.section import Section, _kinds
from scaling.errors import ConfigError
from scaling.laws.options import FitOptions
from scaling.units import parse_share

NONSENSE: dict[str, Any] = {
    "true": True,
    "nan": math.nan,
    "inf": math.inf,
    "-1": -1,
    "1e30": 1e30,
    "2**70": 2**70,
    "empty": "",
    "quoted": "1",
    "list": [],
    "pair": [1, 2],
    "mapping": {"a": 1},
}
MAY_BE_MINUS_ONE = {"cluster.max_preemptions"}


@cache
def tree() -> dict[str, Any]:
    return compose().model_dump(mode="json")


def numeric_fields(
    model: type[Section] = RunConfig, prefix: str = ""
) -> list[tuple[str, bool, bool]]:
    """(key, whether it is of one number and no list, whether it reads text) of every number of the
    configuration."""
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found += numeric_fields(kind, f"{prefix}{name}.")
            continue
        kinds, parsed = _kinds(model, name)
        if kinds & {int, float} and not any(issubclass(k, Section) for k in kinds):
            found.append((prefix + name, "tuple" not in str(kind), parsed))
    return found


def accepted(key: str, value: Any) -> bool:
    """Whether the configuration with this value is one. Only pydantic's error may come of it."""
    changed = copy.deepcopy(tree())
    *path, last = key.split(".")
    section = changed
    for name in path:
        section = section[name]
    section[last] = value
    try:
        RunConfig.model_validate(changed)
    except ValidationError:
        return False
    return True


def test_every_number_refuses_what_is_none() -> None:
    fields = numeric_fields()
    assert len(fields) > 90
    wrong = []
    for key, single, parsed in fields:
        for name, value in NONSENSE.items():
            ok = accepted(key, value)
            may = (
                (name == "-1" and key in MAY_BE_MINUS_ONE)
                or (name == "quoted" and parsed)
                or (name in ("list", "pair") and not single)
            )
            if ok and not may:
                wrong.append(f"{key}={name}")
    assert wrong == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.lr", True, "true is no number"),
        ("optim.lr", "3e-4", "this is text: leave out the quotes"),
        ("train.seed", True, "true is no number"),
        ("checkpoint.keep_steps", [5, 5, 7], "has one step twice: 5, 5, 7"),
        ("checkpoint.keep_steps", [5, -1], "greater than 0"),
        ("checkpoint.keep_steps", [True], "true is no number"),
        ("study.seed", 2**31, "less than"),
        ("cluster.threads_per_worker", 100_000, "less than or equal to 1024"),
        ("logger.project", "a\tb", "control character"),
        ("optim.lr", 1e30, "it is over 100, and one step of Adam moves a weight by about the rate"),
        ("optim.grad_clip", 1e30, "0 turns clipping off"),
    ],
)
def test_a_value_that_is_refused_says_why(key: str, value: Any, message: str) -> None:
    section, name = key.split(".")
    changed = {**tree(), section: tree()[section] | {name: value}}
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(changed)


@pytest.mark.parametrize(
    ("key", "value"),
    [("optim.lr", 1e30), ("cluster.hours_between_failures", 1e9)],
)
def test_what_an_earlier_version_accepted_is_read_from_its_record(key: str, value: Any) -> None:
    section, name = key.split(".")
    changed = {**tree(), section: tree()[section] | {name: value}}
    config = RunConfig.model_validate(changed, context=RECORDED)
    assert getattr(getattr(config, section), name) == value


UNREAD = {
    "schedule.decay_tokens=10%": "only schedule=wsd reads it, and this is schedule=cosine",
    "objective.mask_fraction=0.3": "only objective=masked_lm and objective=span_corruption read it",
    "objective.mean_span=2": "only objective=span_corruption reads it",
    "++logger.project=mine": "only logger=wandb reads it, and this is logger=none",
    "cluster.address=auto": "only cluster.kind=existing reads it, "
    "and this is cluster.kind=embedded",
}


@pytest.mark.parametrize("word", UNREAD)
def test_a_typed_key_that_the_kind_does_not_read_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=UNREAD[word]) as caught:
        compose([word])
    assert caught.value.where == f"from the command line: {word}"
    assert compose([word.partition("=")[0] + "=" + default(word)])


def default(word: str) -> str:
    """The default of a word's key, which may be typed as well."""
    section, _, key = word.lstrip("+").partition("=")[0].partition(".")
    value = tree()[section][key]
    return "null" if value is None else str(value)


def test_a_key_that_a_file_sets_is_no_mistake() -> None:
    """schedule=wsd sets min_lr_ratio, which the constant schedule of a study's trunk does not
    read."""
    config = compose(["schedule=wsd", "schedule.kind=constant"])
    assert (config.schedule.kind, config.schedule.min_lr_ratio) == ("constant", 0.0)
    with pytest.raises(ConfigError, match="only schedule=cosine and schedule=wsd read it"):
        compose(["schedule=constant", "schedule.min_lr_ratio=0.2"])
    assert compose(["position.theta=5e5"]).position.theta == 5e5
    with pytest.raises(ConfigError, match="only position=rope and position=sinusoidal read it"):
        compose(["position=alibi", "position.theta=5e5"])


@pytest.mark.parametrize("key", ["run.name", "study.name", "model.name"])
@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        " a",
        "a ",
        "-a",
        ".a",
        "..",
        "a/b",
        "a\\b",
        "a\nb",
        "a\x1b[31mb",
        "a\x00b",
        "a" * 101,
        "é" * 101,
    ],
)
def test_a_name_makes_a_directory_or_is_refused(key: str, name: str) -> None:
    assert not accepted(key, name)


def test_names_that_are_fine() -> None:
    assert all(
        accepted("run.name", name) for name in ("a", "a b", "run-1.2_x", "naïve", "試驗", "a" * 100)
    )


def test_what_is_text_may_have_lines_where_it_is_prose() -> None:
    assert accepted("train.sample_prompt", "one\n\ttwo")


@pytest.mark.parametrize("text", ["inf%", "-inf%", "nan%", "-1%", "1e400%", "%"])
def test_a_share_is_finite(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_share(text, 1000)


def test_a_list_of_options_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"model=\[a,b\] is a list of options.*\n.*Give one option"
    ):
        compose(["model=[a,b]"])


def test_a_command_prints_no_control_characters() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["run.name='a\x1b[31mb'"])
    assert "\x1b" not in str(caught.value)
    assert "a\\x1b[31mb" in str(caught.value)


@pytest.mark.parametrize(
    "word", ["draws=true", "draws=1e9", "seed=-1", "delta=nan", "cuts=-1", "budgets=0", "noise=3:0"]
)
def test_options_of_a_fit_refuse_it_too(word: str) -> None:
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        read_options(FitOptions, ["table=t.csv", word])
