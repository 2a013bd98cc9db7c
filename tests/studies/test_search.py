"""What a search draws from, where it looks, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaling.composition.compose import compose
from scaling.errors import ConfigError
from scaling.launch.search.tune import declare_search, search_lines
from scaling.studies.search_space import (
    clipped,
    population,
    read_drawn,
    renumbered,
    space_of,
    stops,
    write_drawn,
)

BASE = (
    "tokenizer=byte",
    "train.seq_len=64",
    "train.global_batch_size=8",
    "cluster.devices_per_node=2",
    "train.n_tokens=51200",
)
LR = "study.space={optim.lr:{low:1e-4,high:1e-2,log:true}}"


def test_asha_looks_at_powers_of_its_factor() -> None:
    assert stops(
        compose((*BASE, "study=asha", "study.first_rung_tokens=2000", "study.reduction_factor=3"))
    ) == [4, 12, 36, 100]
    assert stops(compose((*BASE, "study=asha"))) == [7, 28, 100]
    assert stops(compose((*BASE, "study=asha", "study.first_rung_tokens=1M"))) == [100]


def test_pbt_looks_at_every_interval_and_bayesian_at_the_end() -> None:
    assert stops(compose((*BASE, "study=pbt", "study.interval_tokens=15k"))) == [30, 60, 90, 100]
    assert stops(compose((*BASE, "study=bayesian"))) == [100]


def test_perturbed_values_stay_in_their_ranges() -> None:
    space = space_of(
        compose(
            (
                *BASE,
                "study=pbt",
                "study.space={optim.lr:{low:1e-4,high:1e-2},optim.beta1:[0.8,0.9]}",
            )
        )
    )
    assert clipped({"optim.lr": 0.012, "optim.beta1": 0.9}, space) == {
        "optim.lr": 0.01,
        "optim.beta1": 0.9,
    }
    assert clipped({"optim.lr": 8e-5, "optim.beta1": 0.8}, space) == {
        "optim.lr": 1e-4,
        "optim.beta1": 0.8,
    }
    whole = space_of(
        compose(
            (*BASE, "study=bayesian", "study.space={model.n_layers:{low:1,high:8,integer:true}}")
        )
    )
    assert clipped({"model.n_layers": 9.6}, whole) == {"model.n_layers": 8}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("study=asha",), "study=asha needs study.space"),
        (("study=bayesian", "study.space={optim.rate:[1]}"), r"there is no key 'optim.rate'"),
        (("study=bayesian", "study.space={optim.lr:[1e-3,-1]}"), "greater than 0"),
        (("study=bayesian", "study.space={optim.beta1:{low:0.8,high:1.2}}"), "less than 1"),
        (
            ("study=pbt", "study.space={model.n_layers:[1,2]}"),
            r"model.n_layers cannot change during a run",
        ),
        (("study=asha", "study.space={optim.lr:[]}"), "has no values"),
    ],
)
def test_a_space_that_cannot_be_drawn_from_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space_of(compose((*BASE, *words)))


def test_a_search_is_not_swept() -> None:
    jobs = [
        (compose(words), words)
        for lr in (1e-3, 2e-3)
        if (words := (*BASE, "study=asha", LR, f"optim.lr={lr}"))
    ]
    with pytest.raises(ConfigError, match="study=asha cannot be combined with a sweep"):
        declare_search(jobs)


def test_what_was_drawn_is_read_back_as_trials(tmp_path: Path) -> None:
    words = (*BASE, "study=pbt", LR, f"run.root={tmp_path}", "study.n_trials=4")
    study = declare_search([(compose(words), words)])
    assert study.trials == ()
    assert any(
        "4 trials of gpt_nano, looked at after 6.66 k, 13.3 k" in line
        for line in search_lines(study)
    )
    study.directory.mkdir()
    parent = f"{'ab' * 32}@13"
    drawn = [
        {"values": {"optim.lr": lr}, "parent": of, "run": f"x-{lr}", "member": 0}
        for lr, of in ((1e-3, None), (2e-3, parent))
    ]
    write_drawn(study.directory, drawn)
    assert read_drawn(study.directory) == drawn
    first, second = declare_search([(compose(words), words)]).trials
    assert (first.branch, second.branch.trunk, second.branch.step) == (None, "ab" * 32, 13)
    assert first.varied["optim.lr"] == 1e-3
    assert second.config.train.parent == parent
    assert first.identity == compose((*BASE, "optim.lr=1e-3")).semantic_hash, (
        "without a parent it is an ordinary run"
    )
    assert first.config.checkpoint.keep_steps == tuple(stops(compose(words)))


def test_a_population_begins_again_with_the_newest_of_each_member() -> None:
    members = {"a": 0, "b": 3, "c": 2, "d": 0, "e": None}
    drawn = [{"run": run, "member": member} for run, member in members.items()]
    assert [entry["run"] for entry in population(drawn)] == ["d", "c", "b"]
    assert {entry["run"]: entry["member"] for entry in renumbered(drawn)} == {
        "a": None,
        "b": 2,
        "c": 1,
        "d": 0,
        "e": None,
    }
    assert renumbered(renumbered(drawn)) == renumbered(drawn)
