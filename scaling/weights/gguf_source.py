"""A GGUF file as a source: settings, tokenizer and weights under the transformers library's
names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.arrangements.table import ARRANGEMENTS
from scaling.errors import ConfigError
from scaling.weights.gguf_file import GGUFFile, Stored, package, read_gguf
from scaling.weights.gguf_tokenizer import tokenizer_json
from scaling.weights.source import Source, file_hash, settings_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Dialect:
    """What GGUF calls settings and weights of one architecture, set beside the transformers
    library's words.

    permuted: rows of queries and keys are in the order of llama.cpp's rotary form. transposed:
    endings of weights that the library holds as (in, out).
    """

    settings: Mapping[str, str]
    whole: Mapping[str, str]
    block: Mapping[str, str]
    block_name: str
    permuted: bool = False
    transposed: tuple[str, ...] = ()


_ROPE = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
_LLAMA_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LLAMA_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
DIALECTS = {
    "llama": Dialect(_ROPE, _LLAMA_WHOLE, _LLAMA_BLOCK, "model.layers.{}.", permuted=True),
    "qwen2": Dialect(_ROPE, _LLAMA_WHOLE, _LLAMA_BLOCK, "model.layers.{}."),
    "gpt2": Dialect(
        {
            "block_count": "n_layer",
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
            "vocab_size": "vocab_size",
        },
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        {
            "attn_norm": "ln_1",
            "ffn_norm": "ln_2",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        "transformer.h.{}.",
        transposed=("c_attn.weight", "c_proj.weight", "c_fc.weight"),
    ),
}
"""Keyed by general.architecture, which is the model_type of the transformers library too."""
_CHANGES_NOTHING = ("rope.dimension_count", "attention.value_length", "rope.scaling.type")


def gguf_source(word: str, path: Path) -> Source:
    """Raises ConfigError for an architecture, setting or tokenizer that is not read."""
    file = read_gguf(path)
    name, dialect = dialect_of(file)
    arrangement = ARRANGEMENTS[name]
    values = _config(file, name, dialect)
    settings = settings_of(arrangement, values)
    tokenizer = tokenizer_json(file.metadata, str(path))
    template = file.metadata.get("tokenizer.chat_template")
    return Source(
        word,
        "gguf",
        path,
        partial(file_hash, path),
        settings,
        tokenizer,
        chat_template=template if isinstance(template, str) else None,
        arrangement=arrangement,
    )


def dialect_of(file: GGUFFile) -> tuple[str, Dialect]:
    name = file.metadata.get("general.architecture")
    known = [each for each in DIALECTS if each in ARRANGEMENTS]
    if name not in known:
        raise ConfigError(
            f"general.architecture={name!r} of {file.path.name} is not read",
            fix=f"Architectures that are read from GGUF: {', '.join(known)}.",
        )
    return name, DIALECTS[name]


def _config(file: GGUFFile, name: str, dialect: Dialect) -> dict[str, Any]:
    """What the transformers library's config.json would say."""
    own = {
        key.removeprefix(f"{name}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{name}.")
    }
    _check_rope(own, file)
    values: dict[str, Any] = {
        dialect.settings.get(key, key): _plain(value)
        for key, value in own.items()
        if key not in _CHANGES_NOTHING
    }
    embedding = (
        file.weights["token_embd.weight"].shape if "token_embd.weight" in file.weights else (0,)
    )
    values["vocab_size"] = embedding[0]
    if name != "gpt2":
        values["tie_word_embeddings"] = "output.weight" not in file.weights
        values["hidden_act"] = "silu"
    return values


def _check_rope(own: Mapping[str, Any], file: GGUFFile) -> None:
    scaling = own.get("rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in file.weights:
        what = scaling if scaling != "none" else "by rope_freqs.weight"
        raise ConfigError(
            f"{file.path.name} has rotary positions with scaling {what}, which is not read from "
            "GGUF",
            fix="Open the model from its Hugging Face directory: hf:DIRECTORY.",
        )
    width = own["embedding_length"] // own["attention.head_count"]
    width = own.get("attention.key_length", width)
    if own.get("rope.dimension_count", width) != width:
        raise ConfigError(
            f"{file.path.name} rotates {own['rope.dimension_count']} of {width} numbers of a head, "
            "and llama rotates all"
        )


def _plain(value: Any) -> Any:
    """A number of fp32 as it was typed: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


class GGUFWeights:
    """Weights under the transformers library's names, restored a rectangle at a time."""

    def __init__(self, path: Path) -> None:
        self._file = read_gguf(path)
        name, self._dialect = dialect_of(self._file)
        self._heads = {
            kind: int(self._file.metadata[key])
            for kind, key in (
                ("q_proj.weight", f"{name}.attention.head_count"),
                ("k_proj.weight", f"{name}.attention.head_count_kv"),
            )
            if self._dialect.permuted and key in self._file.metadata
        }
        self._stored = {
            their_name(stored, self._dialect): stored for stored in self._file.weights.values()
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: stored.shape[::-1] if name.endswith(self._transposed) else stored.shape
            for name, stored in self._stored.items()
        }

    @property
    def _transposed(self) -> tuple[str, ...]:
        return self._dialect.transposed or ("\0",)

    def read(self, name: str, slices: tuple[Any, ...]) -> Tensor:
        """A rectangle of a weight in fp32 on the CPU."""
        import torch

        stored, turned = self._stored[name], name.endswith(self._transposed)
        wanted = slices[::-1] if turned else slices
        if len(stored.shape) == 1:
            return torch.from_numpy(self._restored(stored, slice(None))[0][wanted[0]].copy())
        rows = np.arange(stored.shape[0])
        for kind, n_heads in self._heads.items():
            if name.endswith(kind):
                rows = unpermuted(stored.shape[0], n_heads)
        found = self._restored(stored, rows[wanted[0]])
        found = found[:, wanted[1]] if len(wanted) > 1 else found
        return torch.from_numpy(np.ascontiguousarray(found.T if turned else found))

    def _restored(self, stored: Stored, rows: Any) -> np.ndarray:
        """Rows of a matrix as fp32."""
        gguf = package()
        data = np.ascontiguousarray(self._file.rows(stored.name)[rows])
        kind = gguf.GGMLQuantizationType(stored.type)
        if kind.name in ("F32", "F16"):
            return data.view(np.float32 if kind.name == "F32" else np.float16).astype(np.float32)
        found: np.ndarray = gguf.quants.dequantize(data, kind).astype(np.float32)
        return found


def unpermuted(n_rows: int, n_heads: int) -> np.ndarray:
    """Which row of llama.cpp's queries or keys is each of ours.

    Its rotary form has the two numbers that turn together side by side: head by head, row 2 i + j
    is row j d/2 + i here, with d rows a head.
    """
    half = n_rows // n_heads // 2
    return np.arange(n_rows).reshape(n_heads, half, 2).swapaxes(1, 2).reshape(-1)


def their_name(stored: Stored, dialect: Dialect) -> str:
    """The transformers library's name of a weight; its own for one that is not known."""
    stem, _, kind = stored.name.rpartition(".")
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block is not None and block[2] in dialect.block:
        return f"{dialect.block_name.format(block[1])}{dialect.block[block[2]]}.{kind}"
    return f"{dialect.whole[stem]}.{kind}" if stem in dialect.whole else stored.name
