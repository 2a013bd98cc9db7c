"""The messages that workers send to their driver: one dataclass per kind, and their JSON form."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from scaling import errors
from scaling.errors import ScalingError

KINDS: dict[str, type[Message]] = {}
"""Every message by the kind that its class states."""


@dataclass(frozen=True)
class Message:
    """Base of all messages. `kind` names one in its JSON form, and in events.jsonl."""

    kind: ClassVar[str]

    def __init_subclass__(cls, *, kind: str) -> None:
        cls.kind = kind
        KINDS[kind] = cls

    def text(self) -> str | None:
        """A line for the person who waits; None where the message needs none."""
        return None


@dataclass(frozen=True)
class Progress(Message, kind="progress"):
    """The latest state of training. fields: step, n_steps, n_tokens and whatever is measured."""

    fields: dict[str, Any]


@dataclass(frozen=True)
class Began(Message, kind="began"):
    """A group of workers begins to train after `step`; 0 at the start of a run."""

    step: int
    world_size: int

    def text(self) -> str:
        return f"Resuming after step {self.step}." if self.step else "Training begins."


@dataclass(frozen=True)
class Remark(Message, kind="notice"):
    """A line for the person who waits. run: whose it is, where one reader serves several runs."""

    line: str
    run: str | None = None

    def text(self) -> str:
        return self.line


# How workers end.


@dataclass(frozen=True)
class Fatal(Message, kind="fatal"):
    """A rank raised a ScalingError: starting it again would not help."""

    error: dict[str, Any]
    rank: int


@dataclass(frozen=True)
class Crashed(Message, kind="crashed"):
    """A rank raised any other error. consequence: it only reports that another rank has gone."""

    rank: int
    error: str
    traceback: str
    consequence: bool


@dataclass(frozen=True)
class Hung(Message, kind="hung"):
    """A rank has finished no step for `still_s`, and ends itself.

    phase: number of the phase of the step, `doing` its name. where: file and line. waiting: whether
    it waits for other ranks. stacks: file with the stacks of its threads.
    """

    rank: int
    step: int
    phase: int
    doing: str
    still_s: float
    where: str
    waiting: bool
    stacks: str


@dataclass(frozen=True)
class Lost(Message, kind="lost"):
    """The launcher reports that a group has ended, and these ranks without an error of their
    own."""

    ranks: list[int]


@dataclass(frozen=True)
class ControllerLost(Message, kind="controller_lost"):
    """Ray Train's controller has died; another one starts the workers again."""


# What workers also write to events.jsonl. Its records of these kinds have the same fields.


@dataclass(frozen=True)
class CheckpointCommitted(Message, kind="checkpoint_committed"):
    """A checkpoint is complete. stall_s: how long training waited for it."""

    step: int
    size_bytes: int
    stall_s: float
    write_s: float


@dataclass(frozen=True)
class CheckpointDamaged(Message, kind="checkpoint_damaged"):
    """A checkpoint failed its verification; the one before it is used."""

    path: str
    reason: str

    def text(self) -> str:
        return f"Passing over a damaged checkpoint, {self.path}: {self.reason}."


@dataclass(frozen=True)
class RolledBack(Message, kind="rolled_back"):
    """Training returned to `step`, and leaves out the sequences from the first to before the
    second."""

    step: int
    from_step: int
    sequences: list[int]
    reason: str

    def text(self) -> str:
        first, end = self.sequences
        return (
            f"Step {self.from_step} is bad, {self.reason}: going back to step {self.step}, and on "
            f"without sequences {first} to {end - 1}."
        )


@dataclass(frozen=True)
class StepSkipped(Message, kind="step_skipped"):
    """The update of a step is left out."""

    step: int
    sequences: list[int]
    reason: str

    def text(self) -> str:
        return f"The update of step {self.step} is left out: {self.reason}."


@dataclass(frozen=True)
class PreemptionNotice(Message, kind="preemption_notice"):
    """The machines of these ranks will be taken back. ends_run: too few would stay to continue."""

    ranks: list[int]
    left_s: float
    ends_run: bool

    def text(self) -> str:
        ranks = ", ".join(str(rank) for rank in self.ranks)
        then = (
            "too few would stay, so the run stops"
            if self.ends_run
            else "the run continues with the others"
        )
        return (
            f"The machines of ranks {ranks} are taken back in {self.left_s:.0f} s: a checkpoint is "
            f"written, and {then}."
        )


@dataclass(frozen=True)
class NotRemoved(Message, kind="not_removed"):
    """An old checkpoint cannot be removed."""

    path: str
    reason: str

    def text(self) -> str:
        return f"{self.path} cannot be removed ({self.reason}); the run continues."


@dataclass(frozen=True)
class RecordGap(Message, kind="record_gap"):
    """metrics.jsonl lacks the records of these steps; partly: at least one of them."""

    first_step: int
    last_step: int
    partly: bool = False

    def text(self) -> str:
        lacks = "lacks records within" if self.partly else "lacks the records of"
        return (
            f"metrics.jsonl {lacks} steps {self.first_step} to {self.last_step}; "
            "the run continues, and its curve has that gap."
        )


@dataclass(frozen=True)
class DataStalled(Message, kind="data_stalled"):
    """A rank waits for its data. shards: those that it waits for; empty where unknown."""

    rank: int
    waited_s: float
    shards: list[str] = field(default_factory=list)

    def text(self) -> str:
        shards = ", ".join(self.shards) or "its batch"
        return f"Rank {self.rank} has waited {self.waited_s:.0f} s for {shards}."


def encode(message: Message) -> list[Any]:
    """The message as JSON values, so that the driver unpickles nothing that a worker sent."""
    return [message.kind, asdict(message)]


def decode(kind: str, fields: dict[str, Any]) -> Message:
    """The message of this kind. Raises KeyError for a kind, TypeError for a field, that is not
    known."""
    return KINDS[kind](**fields)


def encode_error(error: ScalingError) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "what": error.what,
        "where": error.where,
        "fix": error.fix,
    }


def decode_error(message: dict[str, Any]) -> ScalingError:
    """The error that a worker reported; an unknown kind becomes a plain ScalingError."""
    kind = getattr(errors, message["type"], ScalingError)
    # the name comes from another process: only errors may be built from it
    if not (isinstance(kind, type) and issubclass(kind, ScalingError)):
        kind = ScalingError
    return kind(message["what"], message["where"], message["fix"])
