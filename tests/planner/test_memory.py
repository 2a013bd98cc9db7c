"""Predicted memory: against the paper's sums, against what autograd keeps of the real model, and
its order."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.config.run_config import RunConfig
from scaling.planner.cost.counts import count
from scaling.planner.cost.memory import estimate_memory
from scaling.planner.cost.memory_model import MemoryEstimate
from scaling.planner.layout import Layout
from tests.support.configs import composed

LAYOUT = Layout(
    dp=8,
    tp=1,
    pp=1,
    zero_stage=1,
    micro_batch_size=4,
    grad_accum_steps=8,
    activation_checkpointing="none",
    engine="deepspeed",
)
GELU = ("model.activation=gelu", "model.norm=layernorm", "position=learned", "model.bias=true")


def test_total_is_the_sum_of_its_parts() -> None:
    assert MemoryEstimate(1, 2, 4, 8, 16, 32, 64, 128, 256, 512).total == 1023


def test_zero_shares_what_the_paper_says() -> None:
    """Figure 1 of arXiv:1910.02054: 7.5B parameters on 64 devices take 120, 31.4, 16.6 and 1.9
    GB."""
    config, dp = composed("model=gpt_7b", "cluster=8xA100"), 64
    n = count(config).n_params
    states = []
    for stage in (1, 2, 3):
        memory = estimate_memory(config, replace(LAYOUT, dp=dp, zero_stage=stage))
        states.append((memory.weights + memory.gradients + memory.optimizer) / n)
    assert states == pytest.approx([31.4 / 7.5, 16.6 / 7.5, 1.9 / 7.5], rel=0.02)


def test_activations_are_the_papers_34sbh_with_dropout() -> None:
    """Korthikanti et al. 2022, eq. 2 without 5as/h; then one fp32 log-sum a head, and the final
    norm's two values."""
    config = composed("model=gpt_1b", "cluster=8xA100", "model.dropout=0.1")
    model, tokens = config.model, 4 * 2048
    expected = tokens * (
        model.n_layers * (34 * model.d_model + 4 * model.n_heads) + 4 * model.d_model
    )
    assert estimate_memory(config, LAYOUT).activations == expected


def test_full_checkpointing_keeps_inputs_and_one_block() -> None:
    config = composed("model=gpt_1b", "cluster=8xA100")
    model, tokens = config.model, 4 * 2048
    one_block = 32 * model.d_model + 4 * model.n_heads
    expected = tokens * (model.n_layers * 2 * model.d_model + 4 * model.d_model)
    memory = estimate_memory(config, replace(LAYOUT, activation_checkpointing="full"))
    # the loss is the peak
    assert (memory.activations, memory.logits > tokens * one_block) == (expected, True)
    wide = composed("model=gpt_1b", "cluster=8xA100", "model.d_ff=65536")
    memory = estimate_memory(wide, replace(LAYOUT, activation_checkpointing="full"))
    one_block += 4 * (65536 - 4 * model.d_model)
    # the recomputed block is
    assert (memory.activations, memory.logits) == (expected + tokens * one_block, 0)


def test_selective_checkpointing_keeps_what_was_weighed() -> None:
    """12.5 times a block's input instead of 19.0 (docs/parallelism.md, gpt_tiny in fp32); the loss,
    not a block made again, is the peak."""
    config = composed("model=gpt_tiny", "precision=fp32")
    layout = replace(LAYOUT, dp=1, micro_batch_size=1, engine="reference")
    model, head = config.model, 2  # of the final norm
    inputs = config.train.seq_len * model.d_model * 4
    none, selective = (
        estimate_memory(config, replace(layout, activation_checkpointing=kind)).activations / inputs
        - head
        for kind in ("none", "selective")
    )
    assert none == pytest.approx(19.0 * model.n_layers, rel=0.002)
    assert selective == pytest.approx(12.5 * model.n_layers, rel=0.002)


def _kept_bytes(config: RunConfig, autocast: bool) -> float:
    """Bytes a token that autograd keeps of the forward up to the head, the module's parameters
    apart."""
    import torch

    from scaling.model.gpt import GPT

    module = GPT(config).train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens_BT = torch.zeros(2, config.train.seq_len, dtype=torch.long)
    precision = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
        module.hidden(tokens_BT)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / tokens_BT.numel()


@pytest.mark.parametrize(
    "shape",
    [
        (),
        GELU,
        ("model.n_kv_heads=2",),
        ("model.d_head=64",),
        ("model.norm_position=sandwich", "model.qk_norm=head", "model.norm=rmsnorm_one"),
    ],
    ids=str,
)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.005), ("bf16", 0.06)])
def test_a_block_keeps_what_autograd_keeps(
    shape: tuple[str, ...], precision: str, tolerance: float
) -> None:
    """The second block's share, fp32 and under autocast as the reference engine runs; LayerNorm's
    fp32 output is the 6 %."""
    one, two = (
        composed(f"model.n_layers={n}", f"precision={precision}", "train.seq_len=512", *shape)
        for n in (1, 2)
    )
    layout = replace(LAYOUT, dp=1, micro_batch_size=1, engine="reference")
    predicted = (
        estimate_memory(two, layout).activations - estimate_memory(one, layout).activations
    ) / 512
    autocast = precision == "bf16"
    measured = _kept_bytes(two, autocast) - _kept_bytes(one, autocast)
    if autocast:  # its copies of the weights are counted with the weights
        measured -= 2 * (count(two).n_params - count(one).n_params) / (2 * 512)
    assert predicted == pytest.approx(measured, rel=tolerance)


LAYOUTS = st.builds(
    Layout,
    dp=st.integers(1, 64),
    tp=st.just(1),
    pp=st.just(1),
    zero_stage=st.sampled_from((1, 2, 3)),
    micro_batch_size=st.integers(1, 64),
    grad_accum_steps=st.just(1),
    activation_checkpointing=st.sampled_from(("none", "full")),
    engine=st.just("deepspeed"),
)
CONFIGS = st.sampled_from(["gpt_nano", "gpt_10m", "gpt_7b", "gpt_70b"]).map(
    lambda name: composed(f"model={name}", "cluster=8xA100")
)


@given(CONFIGS, LAYOUTS)
def test_memory_falls_with_each_saving(config: RunConfig, layout: Layout) -> None:
    memory = estimate_memory(config, layout)
    assert all(getattr(memory, field.name) >= 0 for field in fields(memory))
    assert (
        estimate_memory(config, replace(layout, micro_batch_size=layout.micro_batch_size + 1)).total
        > memory.total
    )
    assert (
        estimate_memory(config, replace(layout, activation_checkpointing="full")).total
        <= memory.total
    )
    if layout.zero_stage < 3:
        further = estimate_memory(config, replace(layout, zero_stage=layout.zero_stage + 1))
        assert further.states <= memory.states
        assert (
            further.total - further.gathered - further.fragments <= memory.total - memory.fragments
        )
    # of stage 3 the gathered weights grow with dp, up to two blocks
    if layout.dp > 1 and layout.zero_stage < 3:
        assert estimate_memory(config, replace(layout, dp=layout.dp * 2)).total <= memory.total
