"""README.md of an export: what the model is, what it was trained on and how well, in the format of
the Hugging Face hub."""

from __future__ import annotations

import json
import shlex
from typing import Any

from scaling.config.run_config import RunConfig
from scaling.planner.cost.counts import count
from scaling.runs.directory import CURVE, RunDir
from scaling.runs.files import read_object
from scaling.units import format_count
from scaling.weights.source import Source


def model_card(source: Source, config: RunConfig, metadata: dict[str, Any]) -> str:
    """The card's text. Licence and intended use are the author's to fill in."""
    model, n_params = config.model, count(config).n_params
    rows = [
        ("family", f"{model.family}, {config.objective.kind}"),
        ("parameters", f"{format_count(n_params)} ({n_params})"),
        ("layers, width, heads", f"{model.n_layers}, {model.d_model}, {model.n_heads}"),
        ("attention, position", f"{config.attention.kind}, {config.position.kind}"),
        ("vocabulary", str(config.vocab_size)),
        ("weights", str(metadata["dtype"])),
        ("source", f"{source.title} ({source.kind}, content {source.content_hash[:16]})"),
    ]
    lines = [
        "---",
        "license: other",
        "license_name: fill-in",
        "library_name: transformers",
        "---",
        "",
        f"# {model.name}",
        "",
        "*Licence: fill in, here and in the lines above.*",
        "",
        *_table(rows),
        "",
        *(_training(source, config) if source.kind == "run" else []),
        "## Check",
        "",
        "What was written was opened again before this directory appeared:",
        "",
        "```json",
        json.dumps(metadata["check"], indent=1),
        "```",
        "",
    ]
    return "\n".join(lines)


def _table(rows: list[tuple[str, str]]) -> list[str]:
    return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]


def _training(source: Source, config: RunConfig) -> list[str]:
    """What the run's records say: data, tokens, losses, and the command that trains it again."""
    run_dir, manifest = RunDir(source.path), source.manifest
    summary = run_dir.read_summary() or {}
    provenance = read_object(run_dir.path / "provenance.json", strict=False) or {}
    n_tokens = manifest.state.get("n_tokens") if manifest is not None else None
    data = f"{config.data.kind}{f' {config.data.path}' if config.data.path else ''}"
    fingerprint = manifest.corpus_fingerprint[:16] if manifest is not None else "unknown"
    rows = [
        ("data", f"{data} (fingerprint {fingerprint})"),
        (
            "tokens seen",
            "unknown" if n_tokens is None else f"{format_count(n_tokens)} ({n_tokens})",
        ),
        ("steps", str(source.step)),
        ("batch, length", f"{config.train.global_batch_size}, {config.train.seq_len}"),
        ("optimiser", f"{config.optim.kind}, rate {config.optim.lr:g}, {config.schedule.kind}"),
    ]
    for key, name in (("train_loss", "training loss"), ("val_loss", "held-out loss")):
        if isinstance(summary.get(key), int | float):
            rows.append((name, f"{summary[key]:.4f} nats per token"))
    attempts = provenance.get("attempts") or [{}]
    command = attempts[0].get("command") if isinstance(attempts[0], dict) else None
    lines = ["## Training", "", *_table(rows), ""]
    if (run_dir.path / CURVE).is_file():
        lines += [f"![loss against tokens]({CURVE})", ""]
    if isinstance(command, list):
        lines += ["```bash", shlex.join(map(str, command)), "```", ""]
    return lines
