"""Arithmetic in which a mistake stands out from roundings on every machine.

BLAS, vector width and number of threads decide in which order sums are taken, and so how they
round: what an fp32 test sees on one machine says little of another. Equality of mathematics is
therefore shown in float64, whose roundings lie seven digits below any mistake. What has to be
shown in fp32 is held to `rounding_bound`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import adam

RTOL = ATOL = 1e-9
"""Tolerances of float64 against float64: errors seen are near 1e-15, and the smallest mistake is
far above."""


def assert_same(found: Any, expected: Any, name: str = "") -> None:
    """Numbers of float64, tensors or arrays or lists, agree but for roundings."""
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert expected.dtype == torch.float64, "nothing is shown of such numbers"
    torch.testing.assert_close(found, expected, atol=ATOL, rtol=RTOL, msg=lambda m: f"{name}: {m}")


def rounding_bound(*, n_terms: int, n_layers: int = 1, scale: float = 1.0) -> float:
    """How far two orders of summation may set apart a result whose largest intermediate is `scale`.

    A sum of n products rounds n times, each time by at most u = eps/2 of what is summed so far.
    Roundings go up as often as down: with a probability above 1 - 2 exp(-32) their total is below
    8 sqrt(n) u (Higham and Mary 2019, theorem 2.4, lambda = 8). Layers whose outputs add up in a
    residual stream chain their sums, so n is n_terms n_layers. Two orders differ by at most twice
    the error of one: 8 sqrt(n_terms n_layers) eps scale.
    """
    return 8 * math.sqrt(n_terms * n_layers) * torch.finfo(torch.float32).eps * scale


@contextmanager
def in_double() -> Iterator[None]:
    """Everything computes in float64: what is made, and what asks for fp32 here or in a library.

    Norms, softmaxes and losses ask for fp32 whatever their inputs are.
    """
    single, fused = torch.float32, torch._fused_adamw_

    def fused_adamw(*args: Any, found_inf: Tensor | None = None, **options: Any) -> None:
        fused(*args, found_inf=None if found_inf is None else found_inf.to(single), **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(Tensor, "float", Tensor.double)
        # The fused kernel counts its steps, and what it skips, in fp32 whatever the parameters are.
        patch.setattr(adam, "_get_scalar_dtype", lambda is_fused=None: single)
        patch.setattr(torch, "_fused_adamw_", fused_adamw)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(single)
