"""One door to what is trained: a word of the command line becomes a Source.

    RUN[@STEP]                   a run's directory, or its name under run.root
    DIRECTORY                    one of our own exports
    hf:DIRECTORY_OR_NAME[@REV]   a directory in Hugging Face's format, or a name of the hub
    gguf:FILE                    a GGUF file, as llama.cpp reads

A source is described without torch. Nothing in it is executed: weights are safetensors or GGUF,
settings and tokenizers are JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from scaling.arrangements.base import Arrangement, Settings
from scaling.arrangements.table import arrangement_named
from scaling.checkpoint.manifest import Manifest
from scaling.checkpoint.store import (
    checkpoint_name,
    committed,
    has_step,
    newest_valid,
    verify,
)
from scaling.config.paths import plain
from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError, RunDirError
from scaling.runs.by_name import find_run
from scaling.runs.directory import RunDir
from scaling.runs.files import disk_error
from scaling.weights.hub_model import fetched
from scaling.weights.safetensors_files import SafetensorsFiles

Kind = Literal["run", "export", "hf", "gguf"]
FORMS = "RUN[@STEP], hf:DIRECTORY_OR_NAME[@REVISION], gguf:FILE, or the DIRECTORY of an export"
_N_SHOWN = 10
"""Checkpoints that an error names at most."""
TEMPLATE_FILE = "chat_template.jinja"
GROUPS = ("model", "attention", "position", "objective")
"""Groups of our configuration that follow from a source."""


@dataclass(frozen=True)
class Source:
    """Something trained: what it is and where it came from. Its weights are read elsewhere."""

    word: str
    """What was typed."""
    kind: Kind
    path: Path
    """A run's directory, an export's, or the file; of a run, `checkpoint` holds the weights."""
    hashed: Callable[[], str] = field(repr=False)
    """Computes `content_hash`, which reads all of large files."""
    settings: Settings
    """Values by group of our configuration, `train.seq_len` among them where it has a limit."""
    tokenizer: bytes = field(repr=False)
    """Content of a tokenizer.json."""
    config: RunConfig | None = None
    """A run's whole configuration."""
    step: int | None = None
    """Steps of training behind a run's checkpoint."""
    checkpoint: Path | None = None
    manifest: Manifest | None = None
    chat_template: str | None = None
    """How a conversation is written as one text, in Jinja; it is carried along and never run."""
    arrangement: Arrangement | None = None
    """The architecture of weights under another library's names."""

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the weights, the settings and the tokenizer."""
        return self.hashed()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def title(self) -> str:
        """What a command says it has opened."""
        return self.name if self.step is None else f"{self.name}, after step {self.step}"


def find_source(word: str, root: str, notice: Callable[[str], None]) -> Source:
    """The source of a word. Raises ConfigError for a word that names none, CheckpointError or
    RunDirError for a damaged one.

    notice: gets each thing that is passed over, such as a damaged checkpoint.
    """
    kind, colon, rest = word.partition(":")
    if colon and kind == "hf":
        return _hf_source(word, *_with_revision(rest))
    if colon and kind == "gguf":
        from scaling.weights.gguf_source import gguf_source

        return gguf_source(word, Path(plain(rest)).expanduser().absolute())
    directory = Path(plain(word)).expanduser().absolute()
    if (directory / "config.json").is_file() and not (directory / "config.yaml").is_file():
        return _export_source(word, directory)
    return _run_source(word, root, notice)


def _run_source(word: str, root: str, notice: Callable[[str], None]) -> Source:
    run, at, step = word.rpartition("@")
    wanted = int(step) if at and step.isdecimal() else None
    try:
        path = find_run(run if wanted is not None else word, root, notice)
    except ConfigError as error:
        raise ConfigError(error.what, error.where, f"{error.fix} Other sources: {FORMS}.") from None
    run_dir = RunDir(path)
    config = run_dir.read_config()
    checkpoint, manifest = find_checkpoint(run_dir, config, notice, step=wanted)
    tokenizer = read_tokenizer_file(run_dir.tokenizer, config)
    dumped = config.model_dump(mode="json")
    digest = _digest(
        {name: str(file["sha256"]) for name, file in manifest.files.items()}
        | {"config": config.semantic_hash, "tokenizer": _sha256(tokenizer)}
    )
    return Source(
        word,
        "run",
        path,
        lambda: digest,
        {name: dumped[name] for name in GROUPS} | {"train": {"seq_len": config.train.seq_len}},
        tokenizer,
        config,
        manifest.step,
        checkpoint,
        manifest,
    )


def find_checkpoint(
    run_dir: RunDir, config: RunConfig, notice: Callable[[str], None], *, step: int | None = None
) -> tuple[Path, Manifest]:
    """The run's newest sound checkpoint, or that of `step`, which then must be sound.

    Raises ConfigError when there is none, CheckpointError or RunDirError for what is damaged or of
    another run.
    """
    if step is not None:
        path = _checkpoint_of(run_dir, step)
        found: tuple[Path, Manifest] | None = path, verify(path)
    else:
        found = newest_valid(
            run_dir.checkpoints,
            on_damaged=lambda _, error: notice(f"passing over a checkpoint: {error.what}"),
        )
    if found is None:
        raise _no_checkpoint(run_dir)
    checkpoint, manifest = found
    if manifest.semantic_hash != config.semantic_hash:
        raise RunDirError(
            f"{checkpoint} belongs to run {manifest.semantic_hash[:8]}, and "
            f"{run_dir.path / 'config.yaml'} describes {config.run_id}",
            fix="Restore config.yaml or the checkpoint: one of them was replaced.",
        )
    return checkpoint, manifest


def _checkpoint_of(run_dir: RunDir, step: int) -> Path:
    if has_step(run_dir.checkpoints, step):
        return run_dir.checkpoints / checkpoint_name(step)
    found = [at for at, _ in committed(run_dir.checkpoints)]
    if not found:
        raise _no_checkpoint(run_dir)
    shown = ", ".join(map(str, found[-_N_SHOWN:]))
    more = f"{len(found) - _N_SHOWN} older ones, and " if len(found) > _N_SHOWN else ""
    raise ConfigError(
        f"{run_dir.path.name} has no checkpoint of step {step}",
        f"@{step}",
        f"There are: {more}{shown}.",
    )


def _no_checkpoint(run_dir: RunDir) -> ConfigError:
    return ConfigError(
        f"{run_dir.path} has no checkpoint yet (state: {run_dir.state()})",
        f"from {run_dir.path.name}",
        "One is written as the checkpoint group says, and when a run ends or is stopped by Ctrl-C.",
    )


def read_tokenizer_file(path: Path, config: RunConfig) -> bytes:
    """Content of a run's tokenizer.json. Raises RunDirError when it is missing."""
    fix = (
        "Restore it from a copy, or copy tokenizer.json of the run's corpus "
        f"(data.cache_dir={config.data.cache_dir})."
    )
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise RunDirError(f"{path} is missing", fix=fix) from error
    except OSError as error:
        raise disk_error("read", path, error) from error


def _export_source(word: str, directory: Path) -> Source:
    values = read_config_file(directory)
    if not {"model", "attention", "position"} <= values.keys():
        raise ConfigError(
            f"{directory} is a directory in Hugging Face's format",
            f"from {word}",
            f"Write hf:{word}.",
        )
    settings: Settings = {name: values[name] for name in GROUPS}
    settings["model"] = {**settings["model"], "vocab_size": values["vocab_size"]}
    settings["train"] = {"seq_len": values["seq_len"]}
    settings["tokenizer"] = values["tokenizer"]
    tokenizer = _tokenizer_of(directory)
    hashed = partial(_hash_of, directory)
    template = _chat_template(directory)
    return Source(word, "export", directory, hashed, settings, tokenizer, chat_template=template)


def _hf_source(word: str, name: str, revision: str | None) -> Source:
    directory = Path(plain(name)).expanduser().absolute()
    if directory.is_file():
        raise ConfigError(f"{directory} is a file", f"from {word}", "Give its directory.")
    if not directory.is_dir():
        directory = fetched(name, revision)
    values = read_config_file(directory)
    if values.get("auto_map"):
        raise ConfigError(
            f"{directory} needs code of its own ({', '.join(values['auto_map'])}), and nothing of "
            "a stranger is executed",
            "auto_map of config.json",
            "Use a model whose architecture is in the transformers library itself.",
        )
    arrangement = arrangement_named(values, str(directory / "config.json"))
    settings = settings_of(arrangement, values)
    tokenizer = _tokenizer_of(directory)
    return Source(
        word,
        "hf",
        directory,
        partial(_hash_of, directory),
        settings,
        tokenizer,
        chat_template=_chat_template(directory),
        arrangement=arrangement,
    )


def settings_of(arrangement: Arrangement, values: dict[str, Any]) -> Settings:
    """Our settings for their config.json, the size of the vocabulary among them."""
    settings = arrangement.shape_from(values)
    size = values.get("vocab_size")
    if not isinstance(size, int):
        raise ConfigError(f"the config.json of a {arrangement.name} has no vocab_size")
    return {**settings, "model": {**settings["model"], "vocab_size": size}}


def _with_revision(text: str) -> tuple[str, str | None]:
    """hf:NAME@REVISION; a directory may have an @ in its own name."""
    if Path(plain(text)).expanduser().exists():
        return text, None
    name, at, revision = text.rpartition("@")
    return (name, revision) if at else (text, None)


def read_config_file(directory: Path) -> dict[str, Any]:
    """The content of config.json. Raises ConfigError for a directory without one."""
    path = directory / "config.json"
    try:
        values = json.loads(path.read_text("utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is no mapping")
    except FileNotFoundError:
        held = ", ".join(sorted(one.name for one in directory.iterdir())[:6]) or "nothing"
        raise ConfigError(
            f"{directory} has no config.json, which says what the weights are",
            f"it holds {held}",
            "Copy it from where the weights came from.",
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return values


def _tokenizer_of(directory: Path) -> bytes:
    try:
        return (directory / "tokenizer.json").read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{directory} has no tokenizer.json that can be read: {error.strerror}",
            fix="Copy it from where the weights came from; transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(DIRECTORY) makes one of others.",
        ) from error


def _chat_template(directory: Path) -> str | None:
    """The text of chat_template.jinja, or that in tokenizer_config.json."""
    path = directory / TEMPLATE_FILE
    if path.is_file():
        return path.read_text("utf-8")
    found = read_settings(directory / "tokenizer_config.json").get("chat_template")
    return found if isinstance(found, str) else None


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping of a JSON file that need not be there."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _hash_of(directory: Path) -> str:
    names = [path.name for path in SafetensorsFiles(directory).files]
    return _digest(
        {name: file_hash(directory / name) for name in ("config.json", "tokenizer.json", *names)}
    )


def file_hash(path: Path) -> str:
    """SHA-256 of a file. The hub's cache names its large files by it."""
    target = path.resolve()
    if path.is_symlink() and len(target.name) == 64 and target.parent.name == "blobs":
        return target.name
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest(parts: dict[str, str]) -> str:
    return _sha256(json.dumps(parts, sort_keys=True).encode())
