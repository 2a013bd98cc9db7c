"""Models of the Hugging Face hub: their files on this machine."""

from __future__ import annotations

from pathlib import Path

from scaling.errors import ConfigError

PATTERNS = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja", "*.txt")
"""What is fetched: nothing that would be executed or unpickled."""
_TIMEOUT_S = 20.0
"""A hub that answers nothing for so long cannot be reached. Assumption."""


def fetched(name: str, revision: str | None) -> Path:
    """The directory of a model's files. Raises ConfigError when the hub does not give them."""
    word = f"hf:{name}" + (f"@{revision}" if revision else "")
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(PATTERNS), etag_timeout=_TIMEOUT_S
            )
        )
    # of the hub, of the network, of the name: whatever it is, there is no model
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ConfigError(
            f"there is no directory {name}, and the hub gives no model of that name: "
            f"{type(error).__name__}: {reason[0] if reason else 'no reason given'}",
            f"from {word}",
            "Check the name and the network, or give the directory of a copy: hf:DIRECTORY.",
        ) from error
