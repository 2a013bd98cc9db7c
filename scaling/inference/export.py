"""A source written as one directory for another program, which proves that it computes the same.

Weight by weight, so that no more than one file's worth is in memory while writing; the directory is
complete or absent.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scaling.arrangements.table import arrangement_of, their_config
from scaling.composition.source_config import config_of
from scaling.config.run_config import RunConfig
from scaling.data.tokenizer.byte_level import SPECIAL, Tokenizer
from scaling.errors import CheckpointError, DataError
from scaling.inference.export_check import compare
from scaling.inference.export_files import Weight, our_weights, their_weights, write_weights
from scaling.inference.export_gguf import GGUF_FILE, check_writable, rounded, write_gguf
from scaling.inference.llama_cpp import llama_cpp
from scaling.inference.model_card import model_card
from scaling.inference.new_directory import appearing, free_directory
from scaling.inference.trained import tokenizer_of
from scaling.planner.cost.lengths import lengths
from scaling.runs.directory import CURVE
from scaling.runs.files import write_atomic, write_json
from scaling.weights.reader import Reader, open_reader
from scaling.weights.safetensors_files import SafetensorsFiles
from scaling.weights.source import GROUPS, TEMPLATE_FILE, Source, read_settings

DType = Literal["fp32", "bf16", "fp16", "q8_0"]
Format = Literal["safetensors", "hf", "gguf"]
Check = Literal["logits", "weights"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_HUB_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Exported:
    """What was made: where, how many bytes of weights in how many files, and what the check
    found."""

    path: Path
    total_bytes: int
    n_files: int
    check: dict[str, Any]


def export(
    source: Source, to: str, *, format: Format, dtype: DType, max_shard_bytes: int, check: Check
) -> Exported:
    """Write the source to the directory `to`.

    Raises ConfigError when the format has no counterpart of the model or something is in the way,
    CheckpointError when what was written computes something else.
    """
    config = config_of(source)
    if format == "hf":
        arrangement_of(config)
    elif format == "gguf":
        check_writable(config, source.tokenizer, dtype)
    target = free_directory(to)
    tokenizer, reader = tokenizer_of(source, config), open_reader(source, config)
    weights = list((our_weights if format == "safetensors" else their_weights)(config, reader))
    with appearing(target) as directory:
        if format == "gguf":
            path, content = directory / GGUF_FILE, source.tokenizer
            total_bytes = write_gguf(
                path, config, weights, tokenizer, content, dtype, source.chat_template
            )
            n_files = 1
        else:
            dtype_ = _DTYPES[dtype]
            total_bytes, n_files = write_weights(directory, weights, dtype_, max_shard_bytes)
            write_json(directory / "config.json", _described(config, tokenizer, format, dtype))
            (directory / "tokenizer.json").write_bytes(source.tokenizer)
            if source.chat_template is not None:
                text = source.chat_template
                (directory / TEMPLATE_FILE).write_text(text, encoding="utf-8")
        if format == "hf":
            _write_tokenizer_settings(directory, source, tokenizer, config)
        found = (
            _same_bytes(directory, weights, _DTYPES[dtype])
            if check == "weights"
            else _same_logits(directory, format, config, tokenizer, reader, dtype)
        )
        metadata = _metadata(source, dtype, format) | {"check": found}
        write_json(directory / "metadata.json", metadata)
        if format == "hf":
            _write_card(directory, source, config, metadata)
    return Exported(target, total_bytes, n_files, found)


def _same_logits(
    directory: Path,
    format: Format,
    config: RunConfig,
    tokenizer: Tokenizer,
    reader: Reader,
    dtype: DType,
) -> dict[str, Any]:
    def stored(name: str, value: Tensor) -> Tensor:
        return rounded(name, value, dtype) if format == "gguf" else value.to(_DTYPES[dtype])

    as_stored = None if dtype == "fp32" else stored
    proof = compare(directory, format, config, tokenizer, reader, as_stored)
    found = proof.to_dict()
    if format == "gguf":
        ids, path = proof.ids_1T[0].tolist(), directory / GGUF_FILE
        found |= llama_cpp(path, ids, proof.logits_1TV[0], dtype)
    return found


def _same_bytes(directory: Path, weights: list[Weight], dtype: torch.dtype) -> dict[str, Any]:
    """Compare what was written with the source, a weight at a time. Raises CheckpointError."""
    files = SafetensorsFiles(directory)
    for weight in weights:
        wanted = weight.read().to(dtype).float()
        if not torch.equal(files.read(weight.name, (slice(None),) * wanted.ndim), wanted):
            raise CheckpointError(
                f"{weight.name} was written as something else",
                str(directory),
                "Write to another disk; nothing was left here.",
            )
    return {"weights_equal": len(weights)}


def _described(
    config: RunConfig, tokenizer: Tokenizer, format: Format, dtype: DType
) -> dict[str, Any]:
    if format == "hf":
        pad_id = _pad_id(tokenizer, config)
        described = their_config(config, eos_id=tokenizer.eot_id, pad_id=pad_id)
        return described | {"dtype": _HUB_DTYPES[dtype]}
    groups = (*GROUPS, "tokenizer")
    dumped = config.model_dump(mode="json", include=set(groups))
    return {name: dumped[name] for name in groups} | {
        "vocab_size": config.vocab_size,
        "seq_len": config.train.seq_len,
        "dtype": dtype,
    }


def _metadata(source: Source, dtype: DType, format: Format) -> dict[str, Any]:
    found: dict[str, Any] = {
        "format": format,
        "dtype": dtype,
        "source": {"from": source.word, "kind": source.kind, "content_hash": source.content_hash},
    }
    if source.config is not None and source.manifest is not None:
        found |= {
            "run": source.name,
            "semantic_hash": source.config.semantic_hash,
            "corpus_fingerprint": source.manifest.corpus_fingerprint,
            "step": source.manifest.step,
            "n_tokens": source.manifest.state.get("n_tokens"),
        }
    return found


def _pad_id(tokenizer: Tokenizer, config: RunConfig) -> int:
    """Padding, or where the vocabulary has none end-of-text, which is as good where nothing looks
    at it."""
    if config.tokenizer.special_tokens == "eot":
        return tokenizer.eot_id
    try:
        return tokenizer.special("pad")
    except DataError:
        return tokenizer.eot_id


def _write_tokenizer_settings(
    directory: Path, source: Source, tokenizer: Tokenizer, config: RunConfig
) -> None:
    """What AutoTokenizer and generate need beside tokenizer.json. Those of a source in the same
    format go along, but for names of code."""
    special = (
        {f"{name}_token": f"<|{name}|>" for name in SPECIAL}
        if config.tokenizer.special_tokens == "all"
        else {}
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.eot,
        "model_max_length": lengths(config).inputs,
        "clean_up_tokenization_spaces": False,
    }
    theirs = read_settings(source.path / "tokenizer_config.json") if source.kind == "hf" else {}
    theirs = {key: value for key, value in theirs.items() if key != "auto_map"}
    write_json(directory / "tokenizer_config.json", settings | special | theirs)
    generation = {
        "eos_token_id": tokenizer.eot_id,
        "pad_token_id": _pad_id(tokenizer, config),
        "do_sample": False,
    }
    if config.model.traits.encoder_and_decoder:
        generation["decoder_start_token_id"] = _pad_id(tokenizer, config)
    elif config.objective.kind == "causal_lm":
        generation["bos_token_id"] = tokenizer.eot_id
    own = read_settings(source.path / "generation_config.json") if source.kind == "hf" else {}
    write_json(directory / "generation_config.json", generation | own)


def _write_card(
    directory: Path, source: Source, config: RunConfig, metadata: dict[str, Any]
) -> None:
    curve = source.path / CURVE
    if source.kind == "run" and curve.is_file():
        shutil.copyfile(curve, directory / CURVE)
    write_atomic(directory / "README.md", model_card(source, config, metadata).encode())
