"""A killed run held against an unbroken one: what was read twice or not at all, and how far the losses are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scaling.metrics import names
from scaling.metrics.record import Record

COMPARED = (names.TRAIN_LOSS, names.TRAIN_GRAD_NORM, names.VAL_LOSS)


@dataclass(frozen=True)
class Comparison:
    """sequences_repeated, sequences_skipped: of those that the steps which count have read. steps_missing: of the unbroken run's
    records. identical: bit for bit, in losses and gradient norms. max_difference: the greatest between losses; max_relative: that
    over the unbroken run's.
    """

    steps: int
    sequences_repeated: int
    sequences_skipped: int
    steps_missing: int
    steps_repeated: int
    identical: bool
    max_difference: float
    max_relative: float


def compare(unbroken: Sequence[Record], broken: Sequence[Record], global_batch_size: int) -> Comparison:
    """Both with a record for every step."""
    theirs, ours = _by_step(unbroken), _by_step(broken)
    repeated, skipped = _reread(broken, global_batch_size)
    shared = [step for step in theirs if step in ours]
    losses = [
        (theirs[step][name], ours[step][name])
        for step in shared for name in (names.TRAIN_LOSS, names.VAL_LOSS)
        if name in theirs[step] and name in ours[step]
    ]  # fmt: skip
    differences = [abs(a - b) for a, b in losses]
    return Comparison(
        steps=len(shared),
        sequences_repeated=repeated,
        sequences_skipped=skipped,
        steps_missing=len(theirs.keys() - ours.keys()),
        steps_repeated=_n_repeated(broken),
        identical=_identical(theirs, ours),
        max_difference=max(differences, default=math.nan),
        max_relative=max((d / abs(a) for d, (a, _) in zip(differences, losses, strict=True)), default=math.nan),
    )


def _identical(theirs: dict[float, Record], ours: dict[float, Record]) -> bool:
    return theirs.keys() == ours.keys() and all(
        _same(theirs[step].get(name), ours[step].get(name)) for step in theirs for name in COMPARED
    )


def _same(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


def _by_step(records: Sequence[Record]) -> dict[float, Record]:
    """One record a step: a training record and an evaluation of the same step are one."""
    found: dict[float, Record] = {}
    for record in records:
        found.setdefault(record[names.STEP], {}).update(record)
    return found


def _training(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if names.TRAIN_SEQUENCES in record]


def _n_repeated(records: Sequence[Record]) -> int:
    steps = [record[names.STEP] for record in _training(records)]
    return len(steps) - len(set(steps))


def _reread(records: Sequence[Record], global_batch_size: int) -> tuple[int, int]:
    """Sequences read twice and left out, by the data position after each step: the loader's own, not the step's number."""
    ends = [record[names.TRAIN_SEQUENCES] for record in _training(records)]
    repeated = skipped = 0
    position = 0.0
    for end in sorted(ends):
        start = end - global_batch_size
        repeated += max(0, int(min(position, end) - start))
        skipped += max(0, int(start - position))
        position = end
    return repeated, skipped
