"""What a run directory holds about W&B: the id of its run there, and the files of earlier
starts."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.runs.files import disk_error, write_atomic

if TYPE_CHECKING:
    from scaling.config.run_config import RunConfig

ID_FILE = "wandb_id"
FILLED_FILE = "wandb/filled_to"
_READ_TIMEOUT_S = 60.0  # assumption: reading back the files of earlier starts


def wandb_id(config: RunConfig, run_dir: Path) -> str:
    """The W&B id kept in `run_dir`, made at the first start.

    It has a random part: an equal run in another directory gets another id. Raises RunDirError.
    """
    path = run_dir / ID_FILE
    try:
        if run_id := path.read_text(encoding="utf-8").strip():
            return run_id
    except FileNotFoundError:
        pass  # the first start
    except OSError as error:
        raise disk_error("read", path, error) from error
    run_id = f"{config.run_id}-{secrets.token_hex(4)}"
    write_atomic(path, f"{run_id}\n".encode())
    return run_id


def last_step_on_disk(run_dir: Path, run_id: str, unknown: int) -> int:
    """The last step in the files of earlier starts; -1 where there is none.

    wandb's own reader is run as a program. `unknown` is returned where it fails: then nothing is
    replayed, and nothing is logged twice.
    """
    last_step, environment = -1, os.environ | {"WANDB_MODE": "offline"}
    for path in sorted((run_dir / "wandb").glob(f"*run-*/run-{run_id}.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                check=True,
                timeout=_READ_TIMEOUT_S,
            )
            entries = [json.loads(line) for line in done.stdout.splitlines()]
        except (OSError, subprocess.SubprocessError, ValueError):
            return unknown
        steps = [
            int(entry["history"]["step"]["num"]) for entry in entries if entry["type"] == "history"
        ]
        last_step = max([last_step, *steps])
    return last_step


def filled_to(run_dir: Path) -> int:
    """The step up to which a finished run was sent to W&B; -1 where it was not."""
    try:
        return int((run_dir / FILLED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return -1
