"""Generators of trials, and what a study refuses, before anything is started."""

from __future__ import annotations

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given, settings
from hypothesis import strategies as st

import scaling.planner.shape
from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig, conf_dir
from scaling.errors import ConfigError
from scaling.planner.budget import schedule_tokens
from scaling.planner.cost.counts import ModelCounts, count
from scaling.planner.shape import nearest_shape, reshaped
from scaling.studies.generators import Draft, changed, generate
from scaling.studies.trials import declare, differences
from scaling.train.schedule import lr_at

BASE = (
    "tokenizer=byte",
    "train.seq_len=64",
    "train.global_batch_size=8",
    "cluster.devices_per_node=2",
)
STEP = 64 * 8


def drafts(*words: str) -> list[Draft]:
    return generate(compose((*BASE, *words)), (*BASE, *words))


def test_isoflop_spends_each_budget_at_each_size() -> None:
    found = drafts("study=isoflop", "study.budgets=[1e12,4e12]", "study.sizes=[50k,200k,gpt_tiny]")
    by_size: dict[int, list[float]] = {}
    for draft in found:
        counts, tokens = count(draft.config), draft.config.train.n_tokens
        assert tokens is not None
        assert tokens % STEP == 0
        assert 1 <= tokens / counts.n_params <= 400
        by_size.setdefault(counts.n_params, []).append(counts.flops_per_token * tokens)
    assert len(by_size) == 2, "gpt_tiny would see less than a token a parameter"
    for flops in by_size.values():
        assert flops == pytest.approx([1e12, 4e12], rel=0.02)


def test_isoflop_leaves_out_what_is_far_from_any_optimum() -> None:
    words = ("study=isoflop", "study.budgets=[1e12]", "study.sizes=[50k]")
    (draft,) = drafts(*words)
    ratio = draft.config.train.n_tokens / count(draft.config).n_params
    assert drafts(*words, f"study.most_tokens_per_param={ratio * 1.01}")
    with pytest.raises(ConfigError, match="study=isoflop has no trial with 1 to"):
        drafts(*words, f"study.most_tokens_per_param={ratio * 0.99}")


def test_a_ladder_has_every_ratio_at_every_size() -> None:
    found = drafts("study=ladder", "study.sizes=[gpt_nano,100k]", "study.tokens_per_param=[5,20]")
    ratios = [draft.config.train.n_tokens / count(draft.config).n_params for draft in found]
    assert ratios == pytest.approx([5, 20, 5, 20], rel=0.01)
    assert [draft.config.optim.lr for draft in found] == [2.5e-3] * 4
    assert found[0].config.name == f"gpt_nano-{found[0].config.train.n_tokens / 1e6:.3g}M"


def test_named_sizes_compose_inside_a_command_of_hydra() -> None:
    words = ("study=wsd", "study.tokens=[1M,2M]", "study.sizes=[gpt_nano,gpt_tiny]")
    outside = [draft.config for draft in drafts(*words)]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        theirs = GlobalHydra.instance().hydra
        assert [draft.config for draft in drafts(*words)] == outside
        assert GlobalHydra.instance().hydra is theirs
    assert [config.model.name for config in outside] == ["gpt_nano"] * 3 + ["gpt_tiny"] * 3


@pytest.mark.parametrize(
    ("rule", "scaled"), [("none", 1e-3), ("linear", 4e-3), ("sqrt", 2e-3), ("sde", 2e-3)]
)
def test_the_rate_follows_the_batch(rule: str, scaled: float) -> None:
    found = drafts(
        "study=lr_batch",
        "study.batches=[8,32]",
        "study.lr_factors=[1,3]",
        f"study.batch_rule={rule}",
        "optim.lr=1e-3",
        "train.n_tokens=1M",
        "optim.beta2=0.98",
    )
    assert [draft.config.optim.lr for draft in found] == pytest.approx(
        [1e-3, 3e-3, scaled, 3 * scaled]
    )
    assert [draft.config.train.global_batch_size for draft in found] == [8, 8, 32, 32]
    large = found[2].config.optim
    expected = (1 - 4 * 0.1, 1 - 4 * 0.02, 1e-8 / 2) if rule == "sde" else (0.9, 0.98, 1e-8)
    assert (large.beta1, large.beta2, large.eps) == pytest.approx(expected)
    assert all(0 <= draft.config.train.n_tokens - 1_000_000 < 64 * 32 for draft in found)


def test_widths_grow_by_heads() -> None:
    found = drafts(
        "study=lr_width",
        "study.widths=[32,128]",
        "study.lr_factors=[0.5,1]",
        "model.d_ff=256",
        "optim.lr=1e-3",
    )
    shapes = [
        (d.config.model.d_model, d.config.model.n_heads, d.config.model.d_ff, d.config.optim.lr)
        for d in found
    ]
    assert shapes == [
        (32, 1, 64, 5e-4),
        (32, 1, 64, 1e-3),
        (128, 4, 256, 5e-4),
        (128, 4, 256, 1e-3),
    ]
    with pytest.raises(
        ConfigError, match=r"study.widths has 48, which is not a multiple of the head width 32"
    ):
        drafts("study=lr_width", "study.widths=[48]", "study.lr_factors=[1]")


def test_a_batch_beyond_the_rule_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"a batch 16 times as large would need optim.beta1 below 0"
    ):
        drafts(
            "study=lr_batch", "study.batches=[128]", "study.lr_factors=[1]", "study.batch_rule=sde"
        )


def test_a_trunk_and_its_branches_have_one_rate_until_they_part() -> None:
    trunk, *branches = drafts(
        "study=wsd",
        "study.tokens=[60k,120k,500k]",
        "schedule.warmup_tokens=10%",
        "schedule.decay_tokens=25%",
    )
    assert trunk.branch is None
    assert len(branches) == 3

    def rate(draft: Draft, step: int) -> float:
        config = draft.config
        warmup, decay = schedule_tokens(config)
        return lr_at(
            config.schedule,
            peak_lr=1.0,
            n_tokens_seen=step * STEP,
            n_tokens=config.train.n_tokens,
            warmup_tokens=warmup,
            decay_tokens=decay,
        )

    for branch in branches:
        assert branch.branch is not None
        at, last = branch.branch.step, branch.config.train.n_tokens // STEP
        assert branch.branch.trunk == trunk.config.semantic_hash
        assert at in trunk.config.checkpoint.keep_steps
        assert at < trunk.config.train.n_tokens // STEP
        assert 0.7 < at / last < 0.76
        assert [rate(branch, step) for step in range(1, at + 1)] == [
            rate(trunk, step) for step in range(1, at + 1)
        ]
        assert rate(branch, at + 2) < rate(trunk, at + 2)
        assert rate(branch, last) == 0
        only = set(differences([trunk.config, branch.config]))
        assert only <= {"schedule.kind", "schedule.decay_tokens", "train.n_tokens"}


def test_a_study_needs_what_it_reads_and_nothing_else() -> None:
    with pytest.raises(
        ConfigError, match=r"study=isoflop needs study.budgets.*\n.*study.budgets=\[...\]"
    ):
        drafts("study=isoflop", "study.sizes=[1M]")
    with pytest.raises(
        ConfigError,
        match=r"study.budgets is set, but only study=isoflop reads it, and this is study=ladder",
    ):
        compose(["study=ladder", "study.budgets=[1e12]"])
    with pytest.raises(ConfigError, match=r"study.lr_factors has a value that is not above 0"):
        compose(["study=lr_batch", "study.lr_factors=[0]"])
    with pytest.raises(ConfigError, match="low=3 is not below high=2"):
        compose(["study=asha", "study.space={optim.lr:{low:3,high:2}}"])
    with pytest.raises(ConfigError, match="model=gpt_nanoo is not an option of model"):
        drafts("study=ladder", "study.sizes=[gpt_nanoo]", "study.tokens_per_param=[20]")
    jobs = [
        (compose(words), words)
        for n in (1, 2)
        if (words := (*BASE, f"cluster.threads_per_worker={n}"))
    ]
    with pytest.raises(ConfigError, match="a study has one cluster"):
        declare(jobs)


def test_a_changed_key_is_validated_as_a_typed_one() -> None:
    base = compose(BASE)
    assert changed(base, {"optim.lr": 7e-4, "train.seed": 3}).semantic()["train"]["seed"] == 3
    with pytest.raises(ConfigError, match=r"there is no key 'optim.rate'"):
        changed(base, {"optim.rate": 1})
    with pytest.raises(ConfigError, match=r"optim.lr=-1.*greater than 0"):
        changed(base, {"optim.lr": -1})


@settings(max_examples=10)
@given(st.floats(3e4, 3e9), st.booleans())
def test_the_nearest_shape_has_the_size(n_params: float, gated: bool) -> None:
    """A size is never farther off than the step that one head of this width makes."""
    base = compose(
        ("tokenizer=byte", "model.d_model=64", f"model.activation={'swiglu' if gated else 'gelu'}")
    )
    shape = nearest_shape(base, n_params)
    assert shape["d_model"] == 16 * shape["n_heads"]
    found = count(reshaped(base, shape)).n_params
    assert found == pytest.approx(n_params, rel=0.35 if n_params < 3e5 else 0.1)


def test_a_given_feed_forward_width_grows_with_the_model() -> None:
    shape = nearest_shape(compose(("model.d_ff=256", "tokenizer=byte")), 5e6)
    assert shape["d_ff"] == 2 * shape["d_model"]


def test_a_large_size_tries_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size grows with the heads, so few numbers of heads need a count."""
    counts = []

    def counting(config: RunConfig) -> ModelCounts:
        counts.append(config)
        return count(config)

    monkeypatch.setattr(scaling.planner.shape, "count", counting)
    base = compose(("model=gpt_nano", "tokenizer=byte"))
    shape = nearest_shape(base, 3e11)
    assert len(counts) < 3000
    assert count(reshaped(base, shape)).n_params == pytest.approx(3e11, rel=0.01)
    assert nearest_shape(base, 1e15)["n_layers"] == 160
