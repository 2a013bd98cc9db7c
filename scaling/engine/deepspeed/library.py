"""The DeepSpeed library itself: importing it quietly, and resetting its globals."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch

from scaling.engine.deepspeed.private import LEFT_BEHIND


def import_deepspeed() -> Any:
    """DeepSpeed, with what it would print or compile at first use switched off."""
    # Its log lines are for its developers; errors are raised.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    from deepspeed import ops
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # It would compile a collective over shared memory (27-63 s measured); gloo serves without it.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextlib.contextmanager
def nothing_compiled() -> Iterator[None]:
    """Make torch.compile do nothing as a decorator: DeepSpeed decorates a function of Muon with it,
    which imports Inductor (0.9 s)."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def forget_layout() -> None:
    """Reset what DeepSpeed keeps for the whole process about a layout and its process groups, which
    no longer exist."""
    from deepspeed.module_inject.layers import set_autotp_mode

    set_autotp_mode(False)
    for part in LEFT_BEHIND:
        setattr(importlib.import_module(part.module), part.name, None)
