"""A killed run held against an unbroken one: what was read twice or not at all, and how far the
losses are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scaling.metrics import names
from scaling.metrics.record import Record

COMPARED = (names.TRAIN_LOSS, names.TRAIN_GRAD_NORM, names.VAL_LOSS)


@dataclass(frozen=True)
class Comparison:
    """sequences_repeated, sequences_skipped: of those that the steps which count have read.
    steps_missing: of the unbroken run's records. numbers_unmatched: losses and gradient norms that
    one run alone has. identical: bit for bit, in both. max_difference: the greatest between losses;
    max_relative: that over the unbroken run's; max_norm_relative: the same of gradient norms. They
    are infinite where a number is not finite and the other run's is another, and NaN where there is
    nothing to compare.
    """

    steps: int
    sequences_repeated: int
    sequences_skipped: int
    steps_missing: int
    steps_repeated: int
    numbers_unmatched: int
    identical: bool
    max_difference: float
    max_relative: float
    max_norm_relative: float


def compare(
    unbroken: Sequence[Record], broken: Sequence[Record], global_batch_size: int
) -> Comparison:
    """Both with a record for every step."""
    theirs, ours = _by_step(unbroken), _by_step(broken)
    repeated, skipped = _reread(broken, global_batch_size)
    expected, found = _numbers(theirs), _numbers(ours)
    pairs = {at: (expected[at], found[at]) for at in expected.keys() & found.keys()}
    losses = [pair for (_, name), pair in pairs.items() if name != names.TRAIN_GRAD_NORM]
    norms = [pair for (_, name), pair in pairs.items() if name == names.TRAIN_GRAD_NORM]
    return Comparison(
        steps=len(theirs.keys() & ours.keys()),
        sequences_repeated=repeated,
        sequences_skipped=skipped,
        steps_missing=len(theirs.keys() - ours.keys()),
        steps_repeated=_n_repeated(broken),
        numbers_unmatched=len(expected.keys() ^ found.keys()),
        identical=expected.keys() == found.keys()
        and not any(_apart(*pair) for pair in pairs.values()),
        max_difference=max((_apart(*pair) for pair in losses), default=math.nan),
        max_relative=max((_apart_relative(*pair) for pair in losses), default=math.nan),
        max_norm_relative=max((_apart_relative(*pair) for pair in norms), default=math.nan),
    )


def _numbers(records: dict[float, Record]) -> dict[tuple[float, str], float]:
    """What is compared, by step and name."""
    return {
        (step, name): record[name]
        for step, record in records.items()
        for name in COMPARED
        if name in record
    }


def _apart(expected: float, found: float) -> float:
    """Never NaN, which max() would pass over: two NaNs are alike, and one is infinitely far from
    everything else."""
    if expected == found or (math.isnan(expected) and math.isnan(found)):
        return 0.0
    difference = abs(expected - found)
    return difference if math.isfinite(difference) else math.inf


def _apart_relative(expected: float, found: float) -> float:
    difference = _apart(expected, found)
    if difference in (0.0, math.inf):
        return difference
    return difference / abs(expected) if expected else math.inf


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
    """Sequences read twice and left out, by the data position after each step: the loader's own,
    not the step's number."""
    ends = [record[names.TRAIN_SEQUENCES] for record in _training(records)]
    repeated = skipped = 0
    position = 0.0
    for end in sorted(ends):
        start = end - global_batch_size
        repeated += max(0, int(min(position, end) - start))
        skipped += max(0, int(start - position))
        position = end
    return repeated, skipped
