"""What a step sends is what theory says: counted in elements, P parameters, L layers, B T D a
batch's activations."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling.engine.build import build_engine
from scaling.parallel.grid import Ranks
from scaling.planner.layout import Layout
from tests.model.test_family_models import sequences
from tests.support.layout_runs import FAMILIES, SHAPE, G, layout
from tests.support.objectives import objective
from tests.support.ranks import run_ranks

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "bench"))
from traffic import counted

L, P = 2, 43_200
ACTIVATIONS = G * 16 * 32
WITHIN = 0.1


def sent_in_a_step(
    ranks: Ranks, layout: Layout, reuse: bool = True, *overrides: str
) -> dict[str, int]:
    """What one rank sends in its third step, after all one-time work. reuse: ZeRO-3 may
    keep weights for backward."""
    import scaling.engine.deepspeed.zero as module

    configured = module.deepspeed_config

    def without_reuse(*args: Any) -> dict[str, Any]:
        config = configured(*args)
        config["zero_optimization"] |= {
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
        }
        return config

    module.deepspeed_config = configured if reuse else without_reuse
    config, make_batch = objective(*SHAPE, *FAMILIES["gpt"], *overrides)
    ranks = ranks.laid_out(tp=layout.tp, pp=layout.pp, cp=layout.cp)
    try:
        with counted() as counts, ExitStack() as building:
            engine = building.enter_context(
                closing(build_engine(config, layout, ranks, torch.device("cpu")))
            )
            for step in range(3):
                before = dict(counts)
                ks = np.arange(G) + G * step
                rows = np.concatenate([sequences(config, ks[k : k + 1]) for k in range(G)])
                share, size = G // ranks.dp, layout.micro_batch_size
                mine = range(ranks.dp_rank * share, (ranks.dp_rank + 1) * share, size)
                engine.step(
                    [make_batch(rows[at : at + size], ks[at : at + size]) for at in mine], lr=1e-3
                )
            return {
                name: n - before.get(name, 0)
                for name, n in counts.items()
                if n > before.get(name, 0)
            }
    finally:
        module.deepspeed_config = configured


def elements(counts: dict[str, int]) -> int:
    return sum(n for name, n in counts.items() if not name.endswith(" calls"))


def sent(layout: Layout, **options: Any) -> dict[str, int]:
    return run_ranks(sent_in_a_step, layout.world_size, layout, *options.values())[0]


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        (layout(dp=2), 2 * P),  # reduce each gradient to its owner, gather the new weights
        (layout(dp=2, micro=1), 2 * P),  # accumulated before they are sent
        (layout(dp=2, zero_stage=2, micro=4), 2 * P),
        # gradients leave with each of 4 micro-batches
        (layout(dp=2, zero_stage=2, micro=1), (4 + 1) * P),
    ],
)
def test_zero_1_and_2(zero: Layout, expected: int) -> None:
    assert elements(sent(zero)) == pytest.approx(expected, rel=WITHIN)


def test_zero_3_gathers_weights_for_forward_and_for_backward() -> None:
    assert elements(sent(layout(dp=2, zero_stage=3, micro=4), reuse=False)) == pytest.approx(
        3 * P, rel=WITHIN
    )
    assert elements(sent(layout(dp=2, zero_stage=3, micro=4))) == pytest.approx(
        2 * P, rel=WITHIN
    ), "a small model is kept"


def test_tensor_parallel_layers_all_reduce_four_times() -> None:
    counts = sent(layout(tp=2))
    # Attention and feed-forward, forward and backward; the embedding's output, and the gradient of
    # the head's input.
    expected = 2 * (4 * L + 2) * ACTIVATIONS
    assert elements(counts) == pytest.approx(expected, rel=WITHIN)


def test_sequence_parallel_norms_send_as_much_in_other_words() -> None:
    counts = sent(layout(tp=2, sequence_parallel=True))
    assert counts["reduce_scatter"] == pytest.approx(4 * L * ACTIVATIONS, rel=WITHIN)
    # The same in all-gathers, and where blocks begin and end once for each direction.
    assert counts["all_gather"] == pytest.approx((4 * L + 2) * ACTIVATIONS, rel=WITHIN)


def test_ulysses_swaps_positions_for_heads_and_back() -> None:
    counts = sent(layout(cp=2))
    # Queries, keys, values and what is gathered, forward and backward, of a rank's half.
    assert counts["all_to_all_single"] == pytest.approx(8 * L * ACTIVATIONS / 2, rel=WITHIN)


def test_a_ring_passes_keys_and_values_round() -> None:
    counts = sent(layout(cp=4, cp_attention="ring"))
    # A rank's quarter of keys and values to three others, forward and backward; their gradients to
    # three others, and home.
    expected = (2 * 3 + 4) * 2 * L * ACTIVATIONS / 4
    assert counts["batch_isend_irecv"] == pytest.approx(expected, rel=WITHIN)


def test_stages_there_and_back_send_twice_as_much() -> None:
    pipeline = layout(pp=2, pp_schedule="dualpipev")
    for counts in run_ranks(sent_in_a_step, 2, pipeline, True, "model.n_layers=4"):
        assert counts["batch_isend_irecv"] == 2 * ACTIVATIONS


def test_stages_send_activations_forward_and_gradients_back() -> None:
    pipeline = layout(pp=2)
    assert [counts["send"] for counts in run_ranks(sent_in_a_step, 2, pipeline)] == [
        ACTIVATIONS,
        ACTIVATIONS,
    ]
