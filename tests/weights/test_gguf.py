"""GGUF files: weights restored from every type, llama.cpp's order of rows undone, and bad files
named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling import export
from scaling.errors import CheckpointError, ConfigError, ScalingError
from scaling.inference import export_gguf
from scaling.inference.llama_cpp import LARGEST
from scaling.weights import gguf_source
from scaling.weights.gguf_file import read_gguf
from scaling.weights.gguf_source import DIALECTS
from scaling.weights.source import find_source
from tests.weights.test_source import V, assert_computes, make, opened

gguf = pytest.importorskip("gguf")

WIDTH = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def permuted(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Order the rows of queries and keys as llama.cpp's convert_hf_to_gguf.py does (its own
    formula)."""
    half = weight.shape[0] // n_heads // 2
    return weight.reshape(n_heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, theirs: Any, kind: str = "F32", **changed: Any) -> None:
    """A llama of the transformers library as a GGUF file, with a tokenizer of bytes."""
    config, writer = theirs.config, gguf.GGUFWriter(path, changed.get("arch", "llama"))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(changed.get("theta", 10000.0))
    if "scaling" in changed:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    if "novel" in changed:
        writer.add_uint32("llama.novel_gate", 3)
    letters = [*gguf_letters(), "he", "<|endoftext|>", *(f"<|unused_{n}|>" for n in range(V - 258))]
    writer.add_tokenizer_model(changed.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(changed.get("pre", "gpt-2"))
    writer.add_token_list(letters)
    writer.add_token_types([1] * 257 + [3] * (V - 257))
    writer.add_token_merges(["h e"])
    words = {v: k for k, v in (DIALECTS["llama"].whole | DIALECTS["llama"].block).items()}
    for name, value in theirs.state_dict().items():
        stem, _, ending = name.rpartition(".")
        block, inner = "", stem
        if stem.startswith("model.layers."):
            _, _, number, inner = stem.split(".", 3)
            block = f"blk.{number}."
        data = value.numpy()
        if inner.endswith(("q_proj", "k_proj")):
            n_heads = config.num_attention_heads if "q_" in inner else config.num_key_value_heads
            data = permuted(data, n_heads)
        type_ = gguf.GGMLQuantizationType[kind if data.ndim == 2 else "F32"]
        stored = gguf.quants.quantize(data, type_)
        raw = None if kind in ("F32", "F16") or data.ndim == 1 else type_
        writer.add_tensor(f"{block}{words[inner]}.{ending}", stored, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_letters() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make(tmp_path_factory.mktemp("theirs"), "llama", **WIDTH, intermediate_size=96)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_each_type_is_restored_and_rows_are_in_our_order(
    kind: str, theirs: Any, tmp_path: Path
) -> None:
    """The logits are those of transformers with the same rounded weights."""
    write(tmp_path / "model.gguf", theirs, kind)
    type_ = gguf.GGMLQuantizationType[kind]
    rounded = type(theirs)(theirs.config).eval()
    rounded.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.ndim == 2:
                stored = gguf.quants.quantize(parameter.numpy(), type_)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(stored, type_)))
    trained = opened(f"gguf:{tmp_path / 'model.gguf'}")
    assert_computes(trained, rounded)
    assert trained.tokenizer.decode(trained.tokenizer.encode_batch(["he said"])[0]) == "he said"
    assert trained.config.model.norm_eps == theirs.config.rms_norm_eps


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def cut_off_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def of_another_version(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4] = 1
    path.write_bytes(content)


def of_another_type(path: Path) -> None:
    """ggml type 250, written over that of the first weight in the header."""
    first = next(iter(read_gguf(path).weights.values()))
    content = bytearray(path.read_bytes())
    at = content.index(first.name.encode()) + len(first.name) + 4 + 8 * len(first.shape)
    content[at : at + 4] = (250).to_bytes(4, "little")
    path.write_bytes(content)


def no_gguf(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 a zip")


DAMAGED: dict[str, tuple[Callable[[Path], None], type[ScalingError], list[str]]] = {
    "cut off": (cut_off, CheckpointError, ["bytes", "cut off"]),
    "cut off in the header": (cut_off_in_the_header, CheckpointError, ["header"]),
    "of another version": (of_another_version, ConfigError, ["version 1", "2 and 3"]),
    "of another type": (of_another_type, ConfigError, ["type 250", "Q8_0"]),
    "no GGUF": (no_gguf, ConfigError, ["not a GGUF file"]),
    "not there": (lambda path: path.unlink(), ConfigError, ["cannot be read"]),
}
OTHER: dict[str, tuple[dict[str, Any], list[str]]] = {
    "architecture": ({"arch": "mamba"}, ["general.architecture='mamba'", "llama"]),
    "rope scaling": ({"scaling": True}, ["scaling yarn"]),
    "setting": ({"novel": True}, ["novel_gate=3"]),
    "tokenizer": ({"tokenizer": "llama"}, ["kind 'llama'", "gpt2"]),
    "cut of words": ({"pre": "viking"}, ["'viking'", "smollm"]),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named(case: str, theirs: Any, tmp_path: Path) -> None:
    change, kind, said = DAMAGED[case]
    path = tmp_path / "model.gguf"
    write(path, theirs)
    change(path)
    with pytest.raises(kind) as error:
        find_source(f"gguf:{path}", "", print)
    assert all(part in str(error.value) for part in (*said, "model.gguf")), str(error.value)


@pytest.mark.parametrize("case", OTHER)
def test_what_is_not_read_is_named(case: str, theirs: Any, tmp_path: Path) -> None:
    changed, said = OTHER[case]
    write(tmp_path / "model.gguf", theirs, **changed)
    with pytest.raises(ConfigError) as error:
        find_source(f"gguf:{tmp_path / 'model.gguf'}", "", print)
    assert all(part in str(error.value) for part in said), str(error.value)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_what_is_exported_is_read_back(
    name: str, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check of the export compares with the source; here it is seen to have run, and that the
    file is as small as its dtype says."""
    if name == "gpt2":
        make(tmp_path / "theirs", name, n_embd=64, n_head=4)
    else:
        width = {**WIDTH, "intermediate_size": 96, "tie_word_embeddings": name == "qwen2"}
        make(tmp_path / "theirs", name, **width)
    words = (f"from=hf:{tmp_path / 'theirs'}", f"to={tmp_path / 'made'}", "format=gguf")
    assert export.main([*words, f"dtype={dtype}"]) == 0, capsys.readouterr().err
    check = json.loads((tmp_path / "made" / "metadata.json").read_text())["check"]
    assert check["largest_logit_difference"] <= check["bound"]
    assert (check["largest_change_by_rounding"] is None) == (dtype == "fp32")
    size = (tmp_path / "made" / "model.gguf").stat().st_size
    assert size < {"fp32": 700e3, "fp16": 400e3, "bf16": 400e3, "q8_0": 260e3}[dtype]
    if check.get("log_probabilities"):  # where xllamacpp is installed
        assert check["largest_log_probability_difference"] <= LARGEST[dtype]


def test_rows_in_the_wrong_order_are_seen_by_llama_cpp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake that our reader and writer share, so that only llama.cpp can tell."""
    pytest.importorskip("xllamacpp")
    make(tmp_path / "theirs", "llama", **WIDTH, intermediate_size=96)
    for module in (gguf_source, export_gguf):
        monkeypatch.setattr(module, "unpermuted", lambda n_rows, n_heads: np.arange(n_rows))
    words = (f"from=hf:{tmp_path / 'theirs'}", f"to={tmp_path / 'made'}", "format=gguf")
    assert export.main(words) == 1
    assert "llama.cpp computes other log-probabilities" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


UNWRITABLE: dict[str, list[str]] = {
    "format=gguf": ["a bert is not written as GGUF", "llama"],
    "dtype=q8_0": ["dtype=q8_0 is for format=gguf"],
}


@pytest.mark.parametrize("word", UNWRITABLE)
def test_what_cannot_be_written_is_named(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "theirs", "bert")
    assert export.main([f"from=hf:{tmp_path / 'theirs'}", f"to={tmp_path / 'made'}", word]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in UNWRITABLE[word]), said
