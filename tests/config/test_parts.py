"""Choices of a block that do not go together are refused with the reason."""

from __future__ import annotations

import pytest

from scaling.errors import ConfigError
from tests.support.configs import composed

REFUSED = {
    ("model.residual=parallel", "model.norm_position=post"): "use norm_position=pre",
    ("model=t5_tiny", "model.residual=parallel"): "use residual=serial",
    ("model.first_norm=false",): "needs model.embedding_norm=true",
    ("model.factorised=input", "model.d_embedding=32"): "use factorised=tokens",
    ("model=bert_tiny", "model.embedding_norm=false"): "always has that norm",
    ("model.n_segments=2",): "model.family=gpt has none",
    ("model=bert_tiny", "model.head_bias=true"): "has its own",
    ("model=bert_tiny", "model.n_segments=1", "objective.sentence_order=true"): "use 2",
    ("model=t5_tiny", "attention.score_width=16"): "does not divide its scores",
    (
        "model.share_layers=true",
        "attention.pattern=[local,full]",
        "attention.window=8",
    ): "one layer",
    ("attention.pattern=[local,full]",): "needs attention.window",
    ("attention=strided", "attention.pattern=[full]"): "use attention=full or gqa or mqa",
    ("attention=linear", "attention.score_cap=20"): "does not cap scores",
    ("position.rotary_fraction=0.1",): "turns 3 of the 32 dims",
    ("position.local_theta=100",): "no local layers",
    ("position.slow_turns=2",): "only position.scaling=yarn or llama3 reads it",
    (
        "position.scaling=yarn",
        "position.scaling_factor=2",
        "position.slow_turns=40",
    ): "must be below position.fast_turns=32",
    ("position.first_row=2",): "only position=learned",
    ("model.parametrization=mup", "model.base_width=64", "model.scale_embedding=true"): "mup",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_what_does_not_go_together_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        composed(*words)
    assert REFUSED[words] in str(refused.value)
