"""Several corpora as one endless order of sequences, in which each has its part: pure arithmetic,
and what is kept of it on disk.

The k-th sequence of a mixture is a function of (fingerprints, weights, seed, seq_len, k) alone, and
computed in constant time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling.data import index_file
from scaling.data.io.fetch import join
from scaling.data.prepare.tasks import put
from scaling.errors import ConfigError, DataError

MIXTURE_FILE = "mixture.json"
FORMAT_VERSION = 1
PERIOD, _STEP = 832_040, 514_229
"""The 30th and 29th Fibonacci numbers. Places k * _STEP mod PERIOD are spread evenly over a period
(a Fibonacci lattice, Niederreiter 1992, chapter 5), so that every stretch of the order has about
its parts. Weights are rounded to a PERIOD-th. The order of sequences depends on both."""


@dataclass(frozen=True)
class Component:
    """One corpus of a mixture: where it lies, and which one it is."""

    name: str
    location: str
    fingerprint: str
    weight: float


def write_mixture(cache: Path, components: Sequence[Component]) -> Path:
    """A directory in the cache whose mixture.json names the components; the same for the same ones.

    Raises ConfigError for one corpus in two components.
    """
    seen: dict[str, str] = {}
    for component in components:
        if component.fingerprint in seen:
            raise ConfigError(
                f"{seen[component.fingerprint]} and {component.name} are the same corpus",
                "data.components",
                "Name it once.",
            )
        seen[component.fingerprint] = component.name
    content = {
        "format_version": FORMAT_VERSION,
        "components": [asdict(component) for component in components],
    }
    text = json.dumps(content, indent=1)
    directory = cache / f"mixture-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    directory.mkdir(parents=True, exist_ok=True)
    put(directory / MIXTURE_FILE, f"{text}\n".encode())
    return directory


def read_mixture(directory: str | Path) -> list[Component]:
    """The content of mixture.json. Raises DataError for one that is damaged."""
    location = join(directory, MIXTURE_FILE)
    fix = "Delete it: the same command makes it again."
    found = index_file.read_json(location, "a mixture", fix)
    try:
        if found["format_version"] != FORMAT_VERSION:
            version = index_file.shown(found["format_version"])
            raise ValueError(f"format_version is {version}, this version reads {FORMAT_VERSION}")
        listed = index_file.a_list(found["components"], "components")
        return [
            _component_from(index_file.an_object(component, "a component")) for component in listed
        ]
    except (ValueError, KeyError) as error:
        reason = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{location} is not a mixture: {reason}", fix=fix) from error


def _component_from(entry: dict[str, Any]) -> Component:
    """Raises ValueError and KeyError for what is not as `write_mixture` writes it."""
    weight = entry["weight"]
    if type(weight) not in (int, float) or not 0 < weight < math.inf:
        raise ValueError(f"weight is {index_file.shown(weight)}, not a number above 0")
    return Component(
        name=index_file.file_name(entry, "name"),
        location=index_file.text(entry, "location"),
        fingerprint=index_file.sha256(entry, "fingerprint"),
        weight=weight,
    )


class Mixture:
    """Sequence k of a mixture of weights w -> a component, and the number of the sequence in the
    component's own order.

    Each component is taken from in its own order, none left out: of the first k sequences of the
    mixture, k * w of its component, give or take a few, come from each. The seed sets where in the
    period the order begins.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        quotas_C = _quotas(weights)
        self.shares_C = quotas_C / PERIOD
        start = (
            int.from_bytes(hashlib.sha256(f"{seed}/mixture".encode()).digest()[:8], "big") % PERIOD
        )
        places_P = (np.arange(PERIOD, dtype=np.int64) * _STEP + start) % PERIOD
        self._component_P = np.searchsorted(np.cumsum(quotas_C), places_P, side="right").astype(
            np.int16
        )
        self._quotas_C = quotas_C
        self._rank_P = np.empty(PERIOD, dtype=np.int32)  # of a place among those of its component
        for component, quota in enumerate(quotas_C):
            self._rank_P[self._component_P == component] = np.arange(quota)

    def locate(self, ks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Component and number there of the sequences `ks`, both int64 like them."""
        periods, places = np.divmod(np.asarray(ks, dtype=np.int64), PERIOD)
        components = self._component_P[places].astype(np.int64)
        return components, periods * self._quotas_C[components] + self._rank_P[places]

    def counts(self, k: int) -> np.ndarray:
        """How many of the first k sequences come from each component: int64 (C,)."""
        period, place = divmod(k, PERIOD)
        within = np.bincount(self._component_P[:place], minlength=len(self._quotas_C))
        counts_C: np.ndarray = period * self._quotas_C + within
        return counts_C

    def sequences_within(self, available: Sequence[int]) -> int:
        """The longest beginning of the order that takes no more from each component than there
        is."""
        low, high = (
            0,
            int(min(n / share for n, share in zip(available, self.shares_C, strict=True))) + PERIOD,
        )
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high)
                if (self.counts(middle) <= np.array(available)).all()
                else (low, middle - 1)
            )
        return low


def _quotas(weights: Sequence[float]) -> np.ndarray:
    """Parts of a period by largest remainders: int64 (C,). Raises ConfigError for a weight that
    gets none."""
    exact_C = np.array(weights, dtype=np.float64) / sum(weights) * PERIOD
    quotas_C = np.floor(exact_C).astype(np.int64)
    largest = np.argsort(-(exact_C - quotas_C), kind="stable")[: PERIOD - int(quotas_C.sum())]
    quotas_C[largest] += 1
    if not quotas_C.all():
        smallest = weights[int(quotas_C.argmin())]
        raise ConfigError(
            f"a weight of {smallest:g} beside a sum of {sum(weights):g} is none in {PERIOD} "
            "sequences",
            "data.components",
            "Give it more, or leave that component out.",
        )
    return quotas_C


def fingerprint(components: Sequence[Component]) -> str:
    """SHA-256 of what the order of a mixture depends on, but for seed and sequence length."""
    identity = [
        [component.fingerprint for component in components],
        _quotas([c.weight for c in components]).tolist(),
        PERIOD,
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()
