"""Temporary."""

from scaling.config import RunConfig


def stage_bounds(config: RunConfig, pp: int) -> list[tuple[int, int]]:
    n = config.model.n_layers * (2 if config.model.family in ("t5", "transformer") else 1)
    return [(n * i // pp, n * (i + 1) // pp) for i in range(pp)]
