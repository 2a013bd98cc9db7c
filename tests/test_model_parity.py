"""Logits and gradients equal those of the transformers library, with the same small random weights.

Tolerance: fp32 sums in another order; the largest difference seen is 2e-6 on logits of up to 3.
"""

from __future__ import annotations

import pytest
import torch
from plan_config import composed
from torch import Tensor, nn

from scaling.model import LanguageModel, build_model
from scaling.model.batch import Batch

transformers = pytest.importorskip("transformers")

SHAPE = ("model.n_layers=3", "model.d_model=48", "model.n_heads=6", "tokenizer.vocab_size=300", "train.seq_len=32")
GPT2 = (*SHAPE, "model.activation=gelu", "model.norm=layernorm", "model.bias=true", "position=learned")
LLAMA = (*SHAPE, "model.n_kv_heads=2", "model.d_ff=80", "model.tie_embeddings=false")


def gpt2_weights(theirs: nn.Module) -> dict[str, Tensor]:
    """GPT2LMHeadModel's weights under our names; its Conv1D holds (in, out) matrices, and q, k, v as one."""
    state = {name.removeprefix("transformer."): value for name, value in theirs.state_dict().items()}
    ours = {"embedding.weight": state["wte.weight"], "position.table.weight": state["wpe.weight"]}
    ours |= {f"final_norm.{kind}": state[f"ln_f.{kind}"] for kind in ("weight", "bias")}
    pairs = {"attention_norm": "ln_1", "feed_forward_norm": "ln_2", "attention.o": "attn.c_proj",
             "feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj"}  # fmt: skip
    for layer in range(3):
        for kind in ("weight", "bias"):
            for our, their in pairs.items():
                ours[f"blocks.{layer}.{our}.{kind}"] = state[f"h.{layer}.{their}.{kind}"].t()
            for our, part in zip("qkv", state[f"h.{layer}.attn.c_attn.{kind}"].T.chunk(3), strict=True):
                ours[f"blocks.{layer}.attention.{our}.{kind}"] = part
    return ours


def llama_weights(theirs: nn.Module) -> dict[str, Tensor]:
    """LlamaForCausalLM's weights under our names."""
    names = {"model.": "", "embed_tokens": "embedding", "layers": "blocks", "self_attn": "attention", "_proj": "",
             "post_attention_layernorm": "feed_forward_norm", "input_layernorm": "attention_norm", "mlp": "feed_forward",
             "lm_head": "head"}  # fmt: skip
    ours = {}
    for name, value in theirs.state_dict().items():
        for their, our in names.items():
            name = name.replace(their, our)
        ours["final_norm.weight" if name == "norm.weight" else name] = value
    return ours


def random_gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_layer=3, n_embd=48, n_head=6, vocab_size=300, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def random_llama() -> nn.Module:
    config = transformers.LlamaConfig(
        num_hidden_layers=3, hidden_size=48, num_attention_heads=6, num_key_value_heads=2, intermediate_size=80,
        vocab_size=300, max_position_embeddings=32, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def pair(name: str) -> tuple[LanguageModel, nn.Module]:
    """Ours with theirs' weights, which are made large enough for every part to matter."""
    torch.manual_seed(0)
    theirs = (random_gpt2 if name == "gpt2" else random_llama)().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = build_model(composed(*(GPT2 if name == "gpt2" else LLAMA))).eval()
    weights = gpt2_weights(theirs) if name == "gpt2" else llama_weights(theirs)
    ours.load_state_dict(weights)
    return ours, theirs


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logits_and_loss_equal_transformers(name: str) -> None:
    ours, theirs = pair(name)
    tokens = torch.randint(0, 300, (3, 32))
    targets = tokens.roll(-1, dims=1)
    targets[:, -1] = -100
    expected = theirs(tokens, labels=tokens)
    torch.testing.assert_close(ours(tokens), expected.logits, atol=1e-5, rtol=1e-5)
    loss, count, _ = ours.loss(Batch(tokens, targets))
    assert int(count) == 3 * 31
    assert float(loss / count) == pytest.approx(float(expected.loss), rel=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gradients_equal_transformers(name: str) -> None:
    ours, theirs = pair(name)
    tokens = torch.randint(0, 300, (2, 32))
    targets = tokens.roll(-1, dims=1)
    targets[:, -1] = -100
    loss, count, _ = ours.loss(Batch(tokens, targets))
    (loss / count).backward()
    theirs(tokens, labels=tokens).loss.backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    expected = gpt2_weights(theirs) if name == "gpt2" else llama_weights(theirs)
    for parameter_name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[parameter_name], atol=1e-6, rtol=1e-4, msg=lambda m, n=parameter_name: f"{n}: {m}"
        )
