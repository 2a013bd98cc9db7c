"""An overflow of a device's memory says which part is the largest, and what would need less."""

from __future__ import annotations

import pytest

from scaling.composition.compose import compose
from scaling.planner.choose import choose_layout
from scaling.planner.cost.setting import setting_of
from scaling.planner.machines.detect import resolve_cluster
from scaling.planner.overflow import explain_overflow, overrides
from tests.support.configs import composed

GPUS = ("model=gpt_1b", "cluster=8xA100")


def explained(*words: str) -> tuple[str, str]:
    config = composed(*GPUS, *words)
    error = explain_overflow(
        config, choose_layout(config), "CUDA out of memory.\n Tried to allocate 2 GiB"
    )
    assert error.fix is not None
    return error.what, error.fix


def test_a_large_micro_batch_is_cut_first() -> None:
    what, fix = explained(
        "layout=manual", "layout.micro_batch_size=8", "layout.activation_checkpointing=none"
    )
    assert "of which activations are the most" in what
    assert "CUDA out of memory. Tried to allocate 2 GiB" in what
    assert "layout.micro_batch_size=4 layout.activation_checkpointing=none" in fix


def test_one_sequence_at_a_time_is_recomputed() -> None:
    _, fix = explained(
        "layout=manual", "layout.micro_batch_size=1", "layout.zero_stage=3", "train.seq_len=8192"
    )
    assert "layout.micro_batch_size=1 layout.activation_checkpointing=selective" in fix


def test_states_are_sharded_then() -> None:
    what, fix = explained(
        "layout=manual",
        "layout.micro_batch_size=1",
        "layout.zero_stage=1",
        "layout.activation_checkpointing=full",
        "layout.tp=1",
        "layout.pp=1",
        "layout.cp=1",
    )
    assert "activations are the most" not in what
    assert "layout.zero_stage=" in fix


@pytest.mark.parametrize("words", [("layout=ddp",), ("layout=manual", "layout.micro_batch_size=8")])
def test_what_is_proposed_can_be_typed_and_needs_less(words: tuple[str, ...]) -> None:
    config = composed(*GPUS, *words)
    layout = choose_layout(config)
    error = explain_overflow(config, layout, "out of memory")
    assert error.fix is not None
    typed = error.fix.partition(" is predicted")[0].split()
    again = resolve_cluster(compose([*GPUS, *typed]))
    found = choose_layout(again)
    assert overrides(found).split() == typed
    assert (
        setting_of(again).predict(found).need_bytes
        < 0.9 * setting_of(config).predict(layout).need_bytes
    )


def test_nothing_less_is_said() -> None:
    config = composed("model=gpt_nano", "cluster=1xA100")
    error = explain_overflow(config, choose_layout(config), "out of memory")
    assert error.fix is not None
    assert error.fix.startswith(("No layout", "layout=manual"))
