"""A rank's error as a message to the driver, marked where it only follows from another rank's."""

from __future__ import annotations

import traceback
from pathlib import Path

from scaling.channel.base import Channel
from scaling.channel.messages import Crashed, Fatal, encode_error
from scaling.errors import ScalingError, SupersededError
from scaling.redaction import redact

_OF_COLLECTIVES = (
    "gloo",
    "nccl",
    "c10d",
    "processgroup",
    "connection closed by peer",
    "connection reset by peer",
)
"""Words of errors that follow from the loss of another rank: torch raises plain RuntimeErrors."""


def errors_dir(run_dir: Path | str) -> Path:
    """Where ranks leave tracebacks and stacks."""
    path = Path(run_dir) / "errors"
    path.mkdir(exist_ok=True)
    return path


def is_consequence(error: BaseException) -> bool:
    """Whether the error only reports that another rank has gone."""
    # torch.distributed.DistError and kinds of it
    if type(error).__name__.startswith("Dist") and isinstance(error, RuntimeError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _OF_COLLECTIVES)


def report(error: BaseException, channel: Channel, run_dir: Path | str, rank: int) -> None:
    """Send an error to the driver, once: a ScalingError as data, any other as a line, with its
    traceback in a file.
    """
    if (
        getattr(error, "reported", False)
        or isinstance(error, SupersededError)
        or not isinstance(error, Exception)
    ):
        return
    vars(error)["reported"] = True
    if isinstance(error, ScalingError):
        channel.send(Fatal(encode_error(error), rank))
        return
    path = errors_dir(run_dir) / f"rank-{rank:05d}.txt"
    path.write_text(redact("".join(traceback.format_exception(error))))
    summary = redact("".join(traceback.format_exception_only(error)).strip())
    consequence = is_consequence(error)
    channel.send(Crashed(rank, summary, str(path), consequence))
