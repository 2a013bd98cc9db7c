"""Logits, loss, gradients and greedy text equal those of the transformers library, with the same
small random weights.

In float64, where both compute the same to 1e-9 on every machine; logits in fp32 too, to a bound
that is derived (`exact.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scaling.arrangements.base import Place
from scaling.arrangements.table import ARRANGEMENTS as TABLE
from scaling.arrangements.table import arrangement_of, their_config
from scaling.batch import Batch
from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError
from scaling.inference.sampling import generate
from scaling.model import LanguageModel, build_model
from scaling.model.base import GenerativeModel
from scaling.model.export.moves import from_transformers, taken, their_shape, to_transformers
from scaling.parallel.part import Part
from tests.support.configs import composed
from tests.support.exact import ATOL, RTOL, assert_same, rounding_bound

transformers = pytest.importorskip("transformers")

V, T, D, N_LAYERS = 700, 32, 48, 3
EOT, PAD = 0, 1
SHAPE = (
    f"model.n_layers={N_LAYERS}",
    f"model.d_model={D}",
    "model.n_heads=6",
    f"tokenizer.vocab_size={V}",
    f"train.seq_len={T}",
)
T5 = (
    "model=t5_tiny",
    *SHAPE,
    "model.d_ff=80",
    "tokenizer.n_sentinels=8",
    "position.max_distance=24",
)
ARRANGEMENTS = {
    "gpt2": (
        *SHAPE,
        "model.activation=gelu",
        "model.norm=layernorm",
        "model.bias=true",
        "position=learned",
    ),
    "llama": (
        *SHAPE,
        "model.n_kv_heads=2",
        "model.d_ff=80",
        "model.tie_embeddings=false",
        "model.d_head=12",
    ),
    "bert": ("model=bert_tiny", *SHAPE),
    "bert_order": ("model=bert_tiny", *SHAPE, "objective.sentence_order=true"),
    "t5": (*T5, "model.d_head=12"),
    "t5_classic": (*T5, "model.activation=relu", "model.tie_embeddings=true"),
}
every = pytest.mark.parametrize("name", ARRANGEMENTS)
DECODERS = ["gpt2", "llama", "t5", "t5_classic"]


def config_of(name: str) -> RunConfig:
    return composed(*ARRANGEMENTS[name])


def random_theirs(config: RunConfig) -> nn.Module:
    """Theirs by their own configuration, its weights made large enough for every part to matter."""
    values = their_config(config, eos_id=EOT, pad_id=PAD)
    cls = getattr(transformers, values.pop("architectures")[0])
    torch.manual_seed(0)
    theirs = cls(cls.config_class.from_dict(values)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    # theirs unties when it loads such weights, not before
    if config.model.family == "t5" and not config.model.tie_embeddings:
        theirs.config.tie_word_embeddings = False
        theirs.lm_head.weight = nn.Parameter(torch.randn(V, config.model.d_model) * 0.1)
    return theirs


def state_of(theirs: nn.Module) -> dict[str, Tensor]:
    return dict(theirs.state_dict())


def pair(name: str) -> tuple[LanguageModel, nn.Module, RunConfig]:
    config = config_of(name)
    theirs = random_theirs(config)
    ours = build_model(config).eval()
    ours.load_state_dict(from_transformers(config, state_of(theirs)))
    return ours, theirs, config


def batch_of(name: str) -> Batch:
    """Random tokens; of T5 unequal lengths of source and target, of BERT two segments and some
    padding."""
    generator = torch.Generator().manual_seed(1)
    tokens, targets = (torch.randint(2, V, (3, T), generator=generator) for _ in range(2))
    targets[:, ::3] = -100
    if name.startswith("t5"):
        return Batch(
            tokens[:, :20], targets[:, :20], torch.randint(2, V, (3, 29), generator=generator)
        )
    if name.startswith("bert"):
        documents = torch.where(torch.arange(T) < torch.tensor([[T], [20], [9]]), 0, -1)
        segments = (torch.arange(T) >= 8).long().expand(3, T)
        return Batch(
            tokens,
            targets.where(documents == 0, -100),
            documents_BT=documents,
            segments_BT=segments,
        )
    return Batch(tokens, targets)


def their_logits(theirs: nn.Module, batch: Batch) -> Tensor:
    if batch.source_BU is not None:
        return theirs(input_ids=batch.source_BU, decoder_input_ids=batch.tokens_BT).logits
    if batch.segments_BT is None:
        return theirs(batch.tokens_BT).logits
    output = theirs(
        batch.tokens_BT,
        attention_mask=(batch.documents_BT == 0).long(),
        token_type_ids=batch.segments_BT,
    )
    return output.logits if "logits" in output else output.prediction_logits


def our_logits(ours: Any, batch: Batch) -> Tensor:
    if batch.source_BU is not None:
        return ours(batch.tokens_BT, source=ours.encode(batch.source_BU))
    if batch.segments_BT is None:
        return ours(batch.tokens_BT)
    return ours(batch.tokens_BT, batch.segments_BT, batch.documents_BT)


def assert_logits_and_loss_equal(name: str, rtol: float, atol: float) -> None:
    ours, theirs, _ = pair(name)
    batch = batch_of(name)
    expected, logits = their_logits(theirs, batch), our_logits(ours, batch)
    real = (
        batch.documents_BT == 0
        if batch.documents_BT is not None
        else torch.ones_like(batch.tokens_BT, dtype=torch.bool)
    )
    assert expected.std().item() > 0.3
    torch.testing.assert_close(logits[real], expected[real], atol=atol, rtol=rtol)
    nats, count, _ = ours.loss(batch)
    loss = nn.functional.cross_entropy(expected.flatten(0, 1), batch.targets_BT.flatten())
    assert int(count) == int((batch.targets_BT != -100).sum())
    assert (nats / count).item() == pytest.approx(loss.item(), rel=rtol)


@every
def test_logits_and_loss_equal_transformers(name: str, double: None) -> None:
    assert_logits_and_loss_equal(name, RTOL, ATOL)


@every
def test_logits_and_loss_equal_transformers_in_fp32(name: str) -> None:
    # A layer chains products with D terms (queries, scores, outputs, up) and with T and d_ff terms
    # (values, down); a layer of a decoder behind an encoder has twice as many. Logits and scores
    # reach 5.
    bound = rounding_bound(n_terms=4 * D + T + 4 * D, n_layers=2 * N_LAYERS, scale=5)
    assert bound < 2e-3, "so wide a bound finds nothing"
    assert_logits_and_loss_equal(name, bound, bound)


@every
def test_gradients_equal_transformers(name: str, double: None) -> None:
    ours, theirs, config = pair(name)
    batch = batch_of(name)
    nats, count, _ = ours.loss(batch)
    (nats / count).backward()
    nn.functional.cross_entropy(
        their_logits(theirs, batch).flatten(0, 1), batch.targets_BT.flatten()
    ).backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            )
    expected = from_transformers(config, state_of(theirs))
    for parameter_name, parameter in ours.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_same(grad, expected[parameter_name], parameter_name)


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_text_equals_transformers(name: str, double: None) -> None:
    ours, theirs, _ = pair(name)
    assert isinstance(ours, GenerativeModel)
    start = [5, 9, 2, 77]
    theirs.generation_config.eos_token_id = None
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": PAD}
    output = theirs.generate(
        torch.tensor([start]), attention_mask=torch.ones(1, 4).long(), **options
    )[0].tolist()
    greedy = {"temperature": 0, "seed": 0, "context_limit": T}
    if name.startswith("t5"):
        assert [PAD, *generate(ours, [PAD], 20, source_ids=start, **greedy)] == output
    else:
        assert [*start, *generate(ours, start, 20, **greedy)] == output


def test_sentence_order_equals_transformers(double: None) -> None:
    ours, theirs, _ = pair("bert_order")
    batch = batch_of("bert_order")
    output = theirs(
        batch.tokens_BT,
        attention_mask=(batch.documents_BT == 0).long(),
        token_type_ids=batch.segments_BT,
    )
    hidden, _ = ours.hidden(batch.tokens_BT, batch.segments_BT, batch.documents_BT)
    assert_same(ours.order(hidden), output.seq_relationship_logits)


@every
def test_a_saved_directory_opens_there_and_comes_back(name: str, tmp_path: Path) -> None:
    ours, theirs, config = pair(name)
    weights = dict(ours.named_parameters())
    made = to_transformers(config, {key: value.detach() for key, value in weights.items()})
    save_file(made, tmp_path / "model.safetensors", metadata={"format": "pt"})
    described = their_config(config, eos_id=EOT, pad_id=PAD)
    (tmp_path / "config.json").write_text(json.dumps(described))
    opened, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = batch_of(name)
    torch.testing.assert_close(
        their_logits(opened.eval(), batch), their_logits(theirs, batch), atol=0, rtol=0
    )
    # And what they write, we read.
    theirs.save_pretrained(tmp_path / "theirs")
    found = from_transformers(config, load_file(tmp_path / "theirs" / "model.safetensors"))
    for parameter_name, value in found.items():
        assert torch.equal(value, weights[parameter_name]), parameter_name


@every
def test_names_are_a_bijection(name: str) -> None:
    ours, _, config = pair(name)
    weights = dict(ours.named_parameters())
    back = from_transformers(config, to_transformers(config, weights))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in back)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no counterpart(.|\n)*llama has not activation=geglu"):
        arrangement_of(composed(*SHAPE, "model.activation=geglu"))
    with pytest.raises(ConfigError, match=r"bert has not n_experts=2"):
        arrangement_of(composed("model=bert_tiny", "model.n_experts=2"))
    with pytest.raises(ConfigError, match=r"marian has not head_bias=False, halves=None"):
        arrangement_of(composed("model=transformer_base"))
    ours, _, config = pair("llama")
    theirs = to_transformers(config, dict(ours.named_parameters()))
    with pytest.raises(ConfigError, match=r"it has extra.weight"):
        from_transformers(config, theirs | {"extra.weight": torch.zeros(1)})
    del theirs["model.norm.weight"]
    with pytest.raises(ConfigError, match=r"it lacks model.norm.weight"):
        from_transformers(config, theirs)


@every
def test_their_config_says_our_settings(name: str) -> None:
    """Settings make the way there and back, and one that we lack is refused by its name."""
    config = config_of(name)
    values = their_config(config, eos_id=EOT, pad_id=PAD)
    arrangement = TABLE[values["model_type"]]
    values = {
        **values,
        "transformers_version": "5.0",
        "use_cache": True,
        "output_attentions": False,
    }
    settings = arrangement.shape_from(values)
    for group in ("model", "attention", "position", "objective"):
        ours = getattr(config, group).model_dump()
        ours |= {"n_kv_heads": config.model.kv_heads, "d_head": config.model.head_width}
        ours |= {"d_ff": config.model.ff_width, "n_segments": config.model.segments}
        for key, value in settings[group].items():
            assert value in (ours[key], None), (group, key)
    with pytest.raises(ConfigError, match=r"no model of ours has .*: novel_gate='on'"):
        arrangement.shape_from(values | {"novel_gate": "on"})


@pytest.mark.parametrize("part", [Part((6, 4), 0, 2, 3), Part((6, 4), 1, 1, 2), Part.whole((6, 4))])
@pytest.mark.parametrize("transposed", [False, True])
def test_part_of_a_fused_weight_is_read_alone(part: Part, transposed: bool) -> None:
    """Fused, stacked, permuted and transposed at once: what a rank reads is its part of the
    whole."""
    ours = torch.arange(24.0).view(6, 4)
    for rows in (range(2, 8), [3, 2, 5, 4, 7, 6], None):
        place = Place("mine", "theirs", transposed, rows, index=1)
        n_rows, width = 8 if rows else 6, 4
        shape = (width, n_rows) if transposed else (n_rows, width)
        assert their_shape([place], {"mine": (6, 4)}) == (2, *shape)
        theirs, read = torch.full((2, *shape), -1.0), list[int]()
        view = theirs[1].t() if transposed else theirs[1]
        view[torch.tensor(rows) if rows else slice(None)] = ours

        def rectangle(slices: Any, theirs: Tensor = theirs, read: list[int] = read) -> Tensor:
            read.append(theirs[slices].numel())
            return theirs[slices]

        assert torch.equal(taken(place, 2, rectangle, part), part.of(ours))
        assert read[0] <= part.numel + 4, "no more than its part, and a row between"
