"""A model written as one GGUF file, for llama.cpp and what is built on it.

One weight is in memory at a time. Vectors and learned positions stay in fp32, as llama.cpp wants.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scaling.arrangements.table import arrangement_of, their_config
from scaling.config.run_config import RunConfig
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.errors import ConfigError
from scaling.inference.export_files import Weight
from scaling.weights.gguf_file import package
from scaling.weights.gguf_source import DIALECTS, Dialect, unpermuted
from scaling.weights.gguf_tokenizer import CUTS

GGUF_FILE = "model.gguf"
TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""Our word for a dtype -> ggml's."""
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5
_ALIGNMENT_OF_Q8 = 32


def check_writable(config: RunConfig, tokenizer: bytes, dtype: str) -> None:
    """Raise ConfigError for a model or tokenizer that no GGUF file of this dtype can hold."""
    package()
    _dialect(config)
    _cut(json.loads(tokenizer))
    if dtype == "q8_0" and config.model.d_model % _ALIGNMENT_OF_Q8:
        raise ConfigError(
            f"model.d_model={config.model.d_model} is no multiple of {_ALIGNMENT_OF_Q8}, the block "
            "of q8_0",
            "dtype=q8_0",
            "Use dtype=bf16.",
        )


def write_gguf(
    path: Path,
    config: RunConfig,
    weights: Sequence[Weight],
    tokenizer: Tokenizer,
    content: bytes,
    dtype: str,
    chat_template: str | None = None,
) -> int:
    """Write the file, and return the bytes of its weights. weights: under the transformers
    library's names. content: of tokenizer.json."""
    gguf = package()
    name, dialect = _dialect(config)
    writer = gguf.GGUFWriter(path, name)
    writer.add_name(config.model.name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_settings(writer, config, name, dialect, tokenizer)
    _write_tokenizer(writer, json.loads(content), config.vocab_size, tokenizer.eot_id)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    stored = [(_gguf_name(weight.name, dialect), weight) for weight in weights]
    total_bytes = 0
    for their_name, weight in stored:
        type_ = stored_type(their_name, len(weight.shape), dtype)
        shape = (
            weight.shape[::-1]
            if weight.name.endswith(dialect.transposed or ("\0",))
            else weight.shape
        )
        row = _stored(np.zeros((1, shape[-1]), np.float32), type_)
        whole = (*shape[:-1], row.shape[-1])
        n_bytes = int(np.prod(shape[:-1], dtype=np.int64)) * row.nbytes
        raw = None if type_ in ("F32", "F16") else gguf.GGMLQuantizationType[type_]
        writer.add_tensor_info(their_name, whole, row.dtype, n_bytes, raw)
        total_bytes += n_bytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for their_name, weight in stored:
        value = _in_their_order(weight, config, dialect)
        type_ = stored_type(their_name, value.ndim, dtype)
        writer.write_tensor_data(_stored(value, type_))
    writer.close()
    return total_bytes


def stored_type(name: str, ndim: int, dtype: str) -> str:
    """The ggml type of a weight."""
    return "F32" if ndim == 1 or name.startswith("position_embd") else TYPES[dtype]


def rounded(name: str, value: Tensor, dtype: str) -> Tensor:
    """One of our parameters, as it comes back from the file."""
    type_ = stored_type("position_embd" if "position" in name else "", value.ndim, dtype)
    if type_ == "F32":
        return value
    gguf = package()
    stored = _stored(value.numpy(), type_)
    if type_ == "F16":
        return torch.from_numpy(stored.astype(np.float32))
    found = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[type_])
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32)).view_as(value)


def _stored(value: np.ndarray, type_: str) -> np.ndarray:
    gguf = package()
    if type_ in ("F32", "F16"):
        return value.astype(np.float32 if type_ == "F32" else np.float16)
    found: np.ndarray = gguf.quants.quantize(value, gguf.GGMLQuantizationType[type_])
    return found


def _in_their_order(weight: Weight, config: RunConfig, dialect: Dialect) -> np.ndarray:
    """The weight with the rows and columns that llama.cpp wants."""
    value = weight.read().numpy()
    if weight.name.endswith(dialect.transposed or ("\0",)):
        value = np.ascontiguousarray(value.T)
    heads = {"q_proj.weight": config.model.n_heads, "k_proj.weight": config.model.kv_heads}
    for ending, n_heads in heads.items():
        if dialect.permuted and weight.name.endswith(ending):
            moved = np.empty_like(value)
            moved[unpermuted(len(value), n_heads)] = value
            return moved
    return value


def _dialect(config: RunConfig) -> tuple[str, Dialect]:
    name = arrangement_of(config).name
    if name not in DIALECTS:
        raise ConfigError(
            f"a {name} is not written as GGUF",
            "format=gguf",
            f"Architectures that are written: {', '.join(DIALECTS)}.",
        )
    return name, DIALECTS[name]


def _write_settings(
    writer: Any, config: RunConfig, name: str, dialect: Dialect, tokenizer: Tokenizer
) -> None:
    values = their_config(config, eos_id=tokenizer.eot_id, pad_id=tokenizer.eot_id)
    for key, theirs in dialect.settings.items():
        value = values.get(theirs)
        if isinstance(value, float):
            writer.add_float32(f"{name}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{name}.{key}", value)
    if config.position.kind == "rope":
        writer.add_rope_dimension_count(config.model.head_width)
        writer.add_uint32(f"{name}.attention.value_length", config.model.head_width)


def _write_tokenizer(writer: Any, raw: Mapping[str, Any], n_rows: int, eot_id: int) -> None:
    added = {token["id"]: token for token in raw.get("added_tokens") or ()}
    words = {number: token for token, number in raw["model"]["vocab"].items()}
    words |= {number: token["content"] for number, token in added.items()}
    types = [
        _UNUSED
        if number not in words
        else _NORMAL
        if number not in added
        else _CONTROL
        if added[number]["special"]
        else _USER
        for number in range(n_rows)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut(raw))
    writer.add_token_list([words.get(number, f"[PAD{number}]") for number in range(n_rows)])
    writer.add_token_types(types)
    writer.add_token_merges(list(_merges(raw)) or [""])
    writer.add_bos_token_id(eot_id)
    writer.add_eos_token_id(eot_id)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def _merges(raw: Mapping[str, Any]) -> Iterator[str]:
    for merge in raw["model"].get("merges") or ():
        yield merge if isinstance(merge, str) else " ".join(merge)


def _cut(raw: Mapping[str, Any]) -> str:
    """The word of llama.cpp for how a tokenizer cuts text. Raises ConfigError where there is
    none."""
    fix = "Use tokenizer=bpe or byte, or the tokenizer of a model that llama.cpp knows."
    kind = raw["model"].get("type")
    if kind != "BPE" or raw["model"].get("byte_fallback"):
        raise ConfigError(f"a tokenizer of kind {kind} is not written as GGUF", "format=gguf", fix)
    parts = raw.get("pre_tokenizer") or {}
    parts = parts.get("pretokenizers", [parts])
    if not raw["model"].get("merges"):
        return "gpt-2"  # bytes alone: where text is cut changes nothing
    for name, wanted in CUTS.items():
        if _plain(parts) == _plain(wanted):
            return name
    raise ConfigError(
        f"llama.cpp has no word for how this tokenizer cuts text: {json.dumps(parts)[:200]}",
        "format=gguf",
        fix,
    )


def _plain(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The parts without keys that only move offsets."""
    return [{k: v for k, v in part.items() if k != "trim_offsets"} for part in parts]


def _gguf_name(name: str, dialect: Dialect) -> str:
    """GGUF's name of a weight of the transformers library."""
    stem, _, kind = name.rpartition(".")
    whole = {theirs: ours for ours, theirs in dialect.whole.items()}
    if stem in whole:
        return f"{whole[stem]}.{kind}"
    before, after = dialect.block_name.split("{}.")
    number, _, inner = stem.removeprefix(before).partition(".")
    block = {theirs: ours for ours, theirs in dialect.block.items()}
    assert not after
    return f"blk.{number}.{block[inner]}.{kind}"
