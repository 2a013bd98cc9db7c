"""Every arrangement against the transformers library, from random small models of theirs.

Their config.json becomes our configuration, their file our weights; logits, loss and gradients are
theirs to 1e-9 in float64, and every weight comes back byte for byte.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from scaling.arrangements.base import Arrangement
from scaling.arrangements.table import ARRANGEMENTS, arrangement_named
from scaling.batch import Batch
from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError
from scaling.model import build_model
from scaling.model.export.moves import joined, taken
from scaling.planner.cost.counts import count
from tests.support.configs import composed
from tests.support.exact import assert_same

transformers = pytest.importorskip("transformers")

V, T, S = 600, 14, 11
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 32,
}
BERT = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
}
BART = {
    "d_model": 16,
    "max_position_embeddings": 24,
    **{
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 20))
    },
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 12,
}
YARN = {
    "rope_type": "yarn",
    "factor": 2.0,
    "beta_fast": 3.0,
    "beta_slow": 0.5,
    "original_max_position_embeddings": 16,
}
MIXED = ["sliding_attention", "full_attention"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama biases": (
        "LlamaForCausalLM",
        LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama linear": ("LlamaForCausalLM", LLAMA | {"rope_scaling": LINEAR, "rope_theta": 500.0}),
    "llama llama3": ("LlamaForCausalLM", LLAMA | {"rope_scaling": LLAMA3}),
    "llama yarn": ("LlamaForCausalLM", LLAMA | {"rope_scaling": YARN}),
    "mistral": ("MistralForCausalLM", LLAMA | {"sliding_window": 5}),
    "mistral full": ("MistralForCausalLM", LLAMA | {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {**LLAMA, "head_dim": 4}),
    "qwen2 windows": (
        "Qwen2ForCausalLM",
        {**LLAMA, "head_dim": 4}
        | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", LLAMA),
    "opt": (
        "OPTForCausalLM",
        {"hidden_size": 16, "ffn_dim": 20, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"max_position_embeddings": 24, "word_embed_proj_dim": 16},
    ),
    "opt post": (
        "OPTForCausalLM",
        {"hidden_size": 16, "ffn_dim": 20, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"max_position_embeddings": 24, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", BERT | {"rotary_pct": 0.5}),
    "gpt_neox serial": (
        "GPTNeoXForCausalLM",
        BERT | {"rotary_pct": 0.5, "use_parallel_residual": False},
    ),
    "phi": ("PhiForCausalLM", BERT | {"num_key_value_heads": 2}),
    "gemma2": (
        "Gemma2ForCausalLM",
        LLAMA
        | {"sliding_window": 5, "query_pre_attn_scalar": 9, "attn_logit_softcapping": 1.5}
        | {"final_logit_softcapping": 2.0},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        LLAMA
        | {"num_hidden_layers": 3, "sliding_window": 5, "sliding_window_pattern": 3}
        | {"rope_scaling": LINEAR, "query_pre_attn_scalar": 9},
    ),
    "mixtral": ("MixtralForCausalLM", LLAMA | {"num_local_experts": 4, "sliding_window": 5}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
    ),
    "qwen3_moe normed": (
        "Qwen3MoeForCausalLM",
        LLAMA
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
        | {"norm_topk_prob": True},
    ),
    "bert": ("BertForMaskedLM", BERT),
    "bert order": ("BertForPreTraining", BERT),
    "roberta": ("RobertaForMaskedLM", BERT | {"type_vocab_size": 1}),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"dim": 16, "hidden_dim": 20, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 24},
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        {**BERT, "num_hidden_layers": 4, "local_attention": 6, "pad_token_id": 1},
    ),
    "albert": ("AlbertForMaskedLM", BERT | {"embedding_size": 8}),
    "t5": (
        "T5ForConditionalGeneration",
        {"d_model": 16, "d_kv": 6, "d_ff": 20, "num_layers": 2, "num_heads": 4}
        | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
    ),
    "bart": ("BartForConditionalGeneration", BART),
    "marian": (
        "MarianMTModel",
        BART
        | {"scale_embedding": True, "activation_function": "swish", "pad_token_id": V - 1}
        | {"decoder_start_token_id": V - 1},
    ),
}
every = pytest.mark.parametrize("case", CASES)
BASES = {
    "gpt": (),
    "bert": ("model=bert_tiny",),
    "t5": ("model=t5_tiny",),
    "transformer": ("model=transformer_base",),
}


@cache
def base_of(family: str) -> RunConfig:
    return composed(*BASES[family], f"tokenizer.vocab_size={V}")


def config_of(values: dict[str, Any], arrangement: Arrangement) -> RunConfig:
    """Our configuration for a config.json of theirs."""
    settings = arrangement.shape_from(values)
    base = base_of(settings["model"]["family"]).model_dump()
    plain = composed().model_dump()["model"] | {"dropout": 0.0, "name": "theirs"}
    base["model"] = plain | {"vocab_size": values["vocab_size"]} | settings["model"]
    base["attention"], base["position"] = settings["attention"], settings["position"]
    base["objective"] |= {"label_smoothing": 0.0} | settings["objective"]
    base["train"] |= settings["train"]
    return RunConfig.model_validate(base)


def random_theirs(case: str) -> nn.Module:
    """Theirs, its weights made large enough for every part to matter."""
    cls = getattr(transformers, CASES[case][0])
    values = {"vocab_size": V, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = cls.config_class(**(values | CASES[case][1]))
    torch.manual_seed(0)
    # their fused attention does not cap scores, their fused experts take no float64
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    theirs = cls._from_config(config, **eager).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, buffer in theirs.named_buffers():
            if name == "final_logits_bias":
                buffer.add_(torch.randn_like(buffer))
    if case == "marian":
        _with_exact_sinusoids(theirs)
    return theirs


def _with_exact_sinusoids(theirs: Any) -> None:
    """Their table is rounded to fp32 where it is made."""
    for side in (theirs.model.encoder, theirs.model.decoder):
        weight = side.embed_positions.weight
        n, width = weight.shape
        angle = np.arange(n)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
        table = np.concatenate((np.sin(angle), np.cos(angle)), axis=1)
        weight.requires_grad_(False).copy_(torch.from_numpy(table))


class Pair:
    """A model of theirs, saved, and ours with its configuration and weights."""

    def __init__(self, case: str, folder: Path) -> None:
        self.theirs, self.folder = random_theirs(case), folder
        self.state = self.saved()
        values = json.loads((folder / "config.json").read_text())
        self.arrangement = arrangement_named(values, "config.json")
        self.config = config_of(values, self.arrangement)
        self.places = list(self.arrangement.places(self.config))
        self.ours = build_model(self.config).eval()
        self.ours.load_state_dict(self.moved(self.state))

    def saved(self) -> dict[str, Tensor]:
        """Their weights as the files have them."""
        self.theirs.save_pretrained(self.folder)
        return load_file(self.folder / "model.safetensors")

    def moved(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            place.ours: taken(
                place,
                state[place.theirs].ndim - (place.index is not None),
                state[place.theirs].__getitem__,
            )
            for place in self.places
        }


def batch_of(config: RunConfig) -> Batch:
    generator = torch.Generator().manual_seed(1)
    tokens, targets = (torch.randint(5, V - 2, (2, T), generator=generator) for _ in range(2))
    targets[:, ::3] = -100
    if not config.model.traits.encoder_and_decoder:
        return Batch(tokens, targets)
    return Batch(tokens, targets, torch.randint(5, V - 2, (2, S), generator=generator))


def their_logits(theirs: nn.Module, batch: Batch) -> Tensor:
    if batch.source_BU is None:
        output = theirs(batch.tokens_BT)
    else:
        output = theirs(input_ids=batch.source_BU, decoder_input_ids=batch.tokens_BT)
    found: Tensor = output.logits if "logits" in output else output.prediction_logits
    return found


def our_logits(ours: Any, batch: Batch) -> Tensor:
    if batch.source_BU is None:
        found: Tensor = ours(batch.tokens_BT)
        return found
    found = ours(batch.tokens_BT, source=ours.encode(batch.source_BU))
    return found


@every
def test_logits_loss_gradients_and_the_way_back(case: str, tmp_path: Path, double: None) -> None:
    pair = Pair(case, tmp_path)
    batch = batch_of(pair.config)
    expected = their_logits(pair.theirs, batch)
    assert expected.std().item() > 0.1
    assert_same(our_logits(pair.ours, batch), expected, "logits")
    nats, n_targets, _ = pair.ours.loss(batch)
    loss = nn.functional.cross_entropy(expected.flatten(0, 1), batch.targets_BT.flatten())
    assert_same(nats / n_targets, loss, "loss")
    assert_comes_back(pair)
    assert_gradients_equal(pair, nats / n_targets, loss)
    counted = count(pair.config).n_params
    assert counted == sum(parameter.numel() for parameter in pair.ours.parameters())


def assert_comes_back(pair: Pair) -> None:
    """Ours under their names is their file, but for what a tied weight repeats."""
    weights, found = dict(pair.ours.named_parameters()), {}
    assert weights.keys() == {place.ours for place in pair.places}
    for theirs in {place.theirs for place in pair.places}:
        places = [place for place in pair.places if place.theirs == theirs]
        found[theirs] = joined(places, [weights[place.ours].detach() for place in places])
    assert pair.state.keys() - found.keys() <= pair.arrangement.repeated(pair.config)
    assert found.keys() <= pair.state.keys()
    for name, value in found.items():
        assert torch.equal(value, pair.state[name]), name


def assert_gradients_equal(pair: Pair, ours: Tensor, theirs: Tensor) -> None:
    ours.backward()
    theirs.backward()
    with torch.no_grad():
        for parameter in pair.theirs.parameters():
            grad = parameter.grad
            parameter.copy_(torch.zeros_like(parameter) if grad is None else grad)
    expected = pair.moved(pair.saved())
    for name, parameter in pair.ours.named_parameters():
        if name == "head_bias" and "final_logits_bias" in pair.state:
            continue  # theirs is a buffer, which has no gradient
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_same(grad, expected[name], name)


@every
def test_our_config_json_is_read_as_the_same_model(case: str) -> None:
    """Both ways once: their settings -> ours -> theirs -> ours."""
    cls = getattr(transformers, CASES[case][0])
    values = cls.config_class(**({"vocab_size": V} | CASES[case][1])).to_diff_dict()
    arrangement = ARRANGEMENTS[values["model_type"]]
    config = config_of(values | {"architectures": [cls.__name__]}, arrangement)
    assert arrangement.obstacles(config) == []
    written = arrangement.config_for(config)
    again = cls.config_class(**(values | written)).to_diff_dict() | written
    assert config_of(again, arrangement).semantic_hash == config.semantic_hash


EARLIER: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 500.0, "rope_scaling": LLAMA3, "pretraining_tp": 1},
    "gpt_neox": {"rotary_pct": 0.5, "rotary_emb_base": 500},
    "phi": {"partial_rotary_factor": 1.0, "rope_theta": 500.0, "rope_scaling": None},
    "gemma2": {"hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"},
    "gemma3": {"rope_theta": 500.0, "rope_local_base_freq": 100.0, "rope_scaling": LINEAR},
    "modernbert": {"global_rope_theta": 500.0, "local_rope_theta": 100.0}
    | {"global_attn_every_n_layers": 2, "layer_norm_eps": 1e-5},
    "albert": {"down_scale_factor": 1, "gap_size": 0, "net_structure_type": 0},
    "marian": {"extra_pos_embeddings": 58101, "static_position_embeddings": True}
    | {"add_final_layer_norm": False, "normalize_embedding": False, "num_beams": 4},
}
"""Settings as files of earlier versions of the library have them."""


@pytest.mark.parametrize("case", EARLIER)
def test_settings_of_earlier_versions_are_read(case: str) -> None:
    """Their own class brings them up to date; both files are the same model to us."""
    cls, own = getattr(transformers, CASES[case][0]), {"vocab_size": V} | CASES[case][1]
    earlier = {"model_type": cls.config_class.model_type, **own, **EARLIER[case]}
    today = cls.config_class(**(own | EARLIER[case])).to_diff_dict()
    arrangement = ARRANGEMENTS[earlier["model_type"]]
    before, after = (config_of(values, arrangement) for values in (earlier, today))
    assert before.model_dump() == after.model_dump()


REFUSED = {
    ("llama", "rope_scaling", "dynamic"): {"rope_type": "dynamic", "factor": 2.0},
    ("llama", "hidden_act", "gelu"): "gelu",
    ("llama", "new_part", "True"): True,
    ("gpt_neox", "hidden_act", "quick_gelu"): "quick_gelu",
    ("opt", "word_embed_proj_dim", "8"): 8,
    ("phi", "qk_layernorm", "True"): True,
    ("gemma2", "use_bidirectional_attention", "True"): True,
    ("qwen3_moe", "mlp_only_layers", "[0]"): [0],
    ("mixtral", "router_jitter_noise", "0.1"): 0.1,
    ("roberta", "hidden_act", "relu"): "relu",
    ("modernbert", "mlp_bias", "True"): True,
    ("albert", "num_hidden_groups", "2"): 2,
    ("bart", "decoder_layers", "3"): 3,
    ("marian", "share_encoder_decoder_embeddings", "False"): False,
}


@pytest.mark.parametrize("what", REFUSED, ids=" ".join)
def test_a_setting_that_we_lack_is_refused_by_name(what: tuple[str, str, str]) -> None:
    case, key, shown = what
    cls = getattr(transformers, CASES[case][0])
    values = cls.config_class(**({"vocab_size": V} | CASES[case][1])).to_diff_dict()
    values.pop("rope_parameters") if key == "rope_scaling" else None
    with pytest.raises(ConfigError) as refused:
        ARRANGEMENTS[values["model_type"]].shape_from(values | {key: REFUSED[what]})
    assert key.replace("rope_scaling", "rope_type") in str(refused.value)
    assert shown in str(refused.value)
