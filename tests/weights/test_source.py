"""Something trained, opened by a word: what comes out of each kind of source, and what is
refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scaling import export
from scaling.errors import CheckpointError, ConfigError, ScalingError
from scaling.inference.trained import Trained, open_trained
from scaling.model import GenerativeModel, MaskedModel
from scaling.weights.source import find_source
from tests.support.exact import rounding_bound
from tests.support.objectives import byte_tokenizer

transformers = pytest.importorskip("transformers")

V, T = 321, 32
SMALL: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 80,
        "max_position_embeddings": T,
    },
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": T},
    "bert": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "intermediate_size": 80,
        "max_position_embeddings": T,
    },
}
SMALL["qwen2"] = SMALL["llama"]
CLASSES = {
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "bert": "BertForMaskedLM",
}


def make(directory: Path, name: str, **values: Any) -> Any:
    """Their model with random weights that all matter, saved by themselves, with our tokenizer."""
    kind = getattr(transformers, CLASSES[name])
    torch.manual_seed(0)
    theirs = kind(kind.config_class(vocab_size=V, **SMALL[name] | values)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(directory)
    (directory / "tokenizer.json").write_bytes(byte_tokenizer().to_bytes())
    return theirs


def opened(word: str) -> Trained:
    return open_trained(find_source(word, "runs", pytest.fail), torch.device("cpu"))


@torch.no_grad()
def assert_computes(trained: Trained, theirs: Any) -> None:
    tokens = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(1))
    model = trained.model
    assert isinstance(model, GenerativeModel | MaskedModel)
    wanted = theirs(tokens).logits
    bound = rounding_bound(
        n_terms=8 * 48 + 20 + 4 * 48, n_layers=6, scale=float(wanted.abs().max())
    )
    assert float(wanted.std()) > 0.3
    torch.testing.assert_close(model(tokens), wanted, atol=bound, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_their_directory_computes_the_same_here(name: str, tmp_path: Path) -> None:
    theirs = make(tmp_path, name)
    trained = opened(f"hf:{tmp_path}")
    assert_computes(trained, theirs)
    assert (trained.step, trained.path, len(trained.content_hash)) == (None, tmp_path, 64)
    assert trained.config.vocab_size == V


def test_several_files_in_bf16_and_a_body_that_was_saved_alone(tmp_path: Path) -> None:
    theirs = make(tmp_path / "whole", "llama", tie_word_embeddings=True)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.bfloat16())
    # a copy: their wavelengths lose digits too where the whole model is made bf16
    body = copy.deepcopy(theirs.model).bfloat16()
    body.save_pretrained(tmp_path / "body", max_shard_size="20kB")
    (tmp_path / "body" / "tokenizer.json").write_bytes(byte_tokenizer().to_bytes())
    names = json.loads((tmp_path / "body" / "model.safetensors.index.json").read_text())
    assert not any(name.startswith("model.") for name in names["weight_map"])
    assert len(set(names["weight_map"].values())) > 2
    assert_computes(opened(f"hf:{tmp_path / 'body'}"), theirs)


def test_content_hash_follows_weights_settings_and_tokenizer_alone(tmp_path: Path) -> None:
    make(tmp_path / "a", "llama")
    make(tmp_path / "b", "llama")
    (tmp_path / "b" / "notes.txt").write_text("elsewhere")
    first, second = (find_source(f"hf:{tmp_path / name}", "", print).content_hash for name in "ab")
    assert first == second
    weights = load_file(tmp_path / "b" / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, tmp_path / "b" / "model.safetensors")
    assert find_source(f"hf:{tmp_path / 'b'}", "", print).content_hash != first


def change_settings(**values: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def cut_off(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_weights_file(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def smaller_embedding(directory: Path) -> None:
    change_settings(vocab_size=300)(directory)
    weights = load_file(directory / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:300].clone()
    save_file(weights, directory / "model.safetensors")


def change_weights(lost: str, new: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        weights[new] = weights.pop(lost)
        save_file(weights, directory / "model.safetensors")

    return change


REFUSED: dict[str, tuple[Callable[[Path], None], type[ScalingError], list[str]]] = {
    "no config.json": (
        lambda directory: (directory / "config.json").unlink(),
        ConfigError,
        ["has no config.json", "model.safetensors"],
    ),
    "unknown architecture": (
        change_settings(model_type="mamba"),
        ConfigError,
        ["model_type='mamba'", "gpt2", "llama", "bert", "t5"],
    ),
    "another head": (
        change_settings(architectures=["LlamaForSequenceClassification"]),
        ConfigError,
        ["LlamaForSequenceClassification", "LlamaForCausalLM"],
    ),
    "a setting that we lack": (
        change_settings(hidden_act="relu2"),
        ConfigError,
        ["hidden_act='relu2'", "silu"],
    ),
    "an unknown setting": (change_settings(new_gate=3), ConfigError, ["new_gate=3"]),
    "code of its own": (
        change_settings(auto_map={"AutoModel": "theirs.Model"}),
        ConfigError,
        ["nothing of a stranger is executed"],
    ),
    "shapes that disagree": (
        change_settings(intermediate_size=96),
        CheckpointError,
        ["mlp.down_proj.weight", "(48, 80)", "(48, 96)"],
    ),
    "a truncated file": (cut_off, CheckpointError, ["bytes", "cut off"]),
    "pickled weights": (
        no_weights_file,
        ConfigError,
        ["pytorch_model.bin", "unpickling", "save_pretrained"],
    ),
    "a tokenizer of another size": (
        smaller_embedding,
        ConfigError,
        ["the tokenizer", "321 entries", "300 rows"],
    ),
    "a missing and an extra weight": (
        change_weights("model.norm.weight", "model.novel.weight"),
        ConfigError,
        ["it lacks final_norm.weight", "nothing reads model.novel.weight", "init_from.missing"],
    ),
    "no tokenizer": (
        lambda directory: (directory / "tokenizer.json").unlink(),
        ConfigError,
        ["no tokenizer.json"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_what_is_wrong(case: str, tmp_path: Path) -> None:
    make(tmp_path, "llama")
    change, kind, said = REFUSED[case]
    change(tmp_path)
    with pytest.raises(kind) as error:
        opened(f"hf:{tmp_path}")
    assert all(part in str(error.value) for part in said), str(error.value)


def test_a_directory_of_another_kind_is_named(tmp_path: Path) -> None:
    make(tmp_path / "theirs", "llama")
    with pytest.raises(ConfigError, match=r"Write hf:.*theirs"):
        find_source(str(tmp_path / "theirs"), "runs", print)
    with pytest.raises(ConfigError, match=r"RUN\[@STEP\], hf:"):
        find_source(str(tmp_path / "nothing"), str(tmp_path), print)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_there_and_back_is_the_same(name: str, tmp_path: Path) -> None:
    """Theirs to ours to theirs: every weight, the settings of the tokenizer and the template."""
    make(tmp_path / "first", name)
    (tmp_path / "first" / "chat_template.jinja").write_text("{{ messages }}")
    settings = {"eos_token": "<|sep|>", "auto_map": {"AutoTokenizer": ["theirs.Tokenizer", None]}}
    (tmp_path / "first" / "tokenizer_config.json").write_text(json.dumps(settings))
    steps = (
        ("hf:first", "second", "hf"),
        ("hf:second", "own", "safetensors"),
        ("own", "last", "hf"),
    )
    for source, to, format in steps:
        word = source.replace("hf:", f"hf:{tmp_path}/") if ":" in source else tmp_path / source
        assert export.main([f"from={word}", f"to={tmp_path / to}", f"format={format}"]) == 0
    first = load_file(tmp_path / "first" / "model.safetensors")
    for to in ("second", "last"):
        found = load_file(tmp_path / to / "model.safetensors")
        assert found.keys() == first.keys()
        assert all(torch.equal(found[key], first[key]) for key in first)
        assert (tmp_path / to / "chat_template.jinja").read_text() == "{{ messages }}"
    written = json.loads((tmp_path / "second" / "tokenizer_config.json").read_text())
    assert written["eos_token"] == "<|sep|>"
    assert "auto_map" not in written
