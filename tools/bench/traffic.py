"""Count the elements that a rank passes to collectives, at the calls of torch.distributed, which
DeepSpeed uses too."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor

SMALL = 64
"""Tensors of at most this many elements are norms, counts and flags, and are not counted."""

# Elements that pass a rank in a ring, but for 1/n of them: of an all-reduce twice its tensor, else
# once what all have together.
_VOLUMES: dict[str, Callable[..., int]] = {
    "all_reduce": lambda tensor, *_, **__: 2 * tensor.numel(),
    "reduce": lambda tensor, *_, **__: tensor.numel(),
    "broadcast": lambda tensor, *_, **__: tensor.numel(),
    "all_gather": lambda parts, *_, **__: sum(part.numel() for part in parts),
    "all_gather_into_tensor": lambda whole, *_, **__: whole.numel(),
    "reduce_scatter": lambda _, parts, *__, **___: sum(part.numel() for part in parts),
    "reduce_scatter_tensor": lambda _, whole, *__, **___: whole.numel(),
    "all_to_all_single": lambda _, given, *__, **___: given.numel(),
    "all_to_all": lambda _, given, *__, **___: sum(part.numel() for part in given),
    "send": lambda tensor, *_, **__: tensor.numel(),
    "batch_isend_irecv": lambda ops: sum(op.tensor.numel() for op in ops if op.op is dist.isend),
}


_BOUND = {
    "all_gather_function": "all_gather_into_tensor",
    "reduce_scatter_function": "reduce_scatter_tensor",
}
"""Functions that DeepSpeed looks up once and keeps."""


def _deepspeed_backend() -> Any:
    from scaling.engine.deepspeed.library import import_deepspeed

    deepspeed = import_deepspeed()
    deepspeed.init_distributed(dist_backend=dist.get_backend(), dist_init_required=False)
    return deepspeed.comm.comm.cdb


@contextlib.contextmanager
def counted(*, deepspeed: bool = True) -> Iterator[Counter[str]]:
    """The elements that each kind of call moves, and under "NAME calls" how many there are.

    deepspeed: whether an engine of it is to be counted, which must then be made within.
    """
    counts: Counter[str] = Counter()
    before = {name: getattr(dist, name) for name in _VOLUMES}
    backend = _deepspeed_backend() if deepspeed else None
    bound = _BOUND if deepspeed else {}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            named = [
                kwargs[key]
                for key in ("tensor", "output_tensor", "output", "input_tensor", "input")
                if key in kwargs
            ]
            volume = _VOLUMES[name](
                *args, *[value for value in named if isinstance(value, Tensor | list)]
            )
            if volume > SMALL and dist.get_world_size(kwargs.get("group")) > 1:
                counts[name] += volume
                counts[f"{name} calls"] += 1
            return before[name](*args, **kwargs)

        return call

    try:
        for name in _VOLUMES:
            setattr(dist, name, counting(name))
        for own, name in bound.items():
            setattr(backend, own, counting(name))
        yield counts
    finally:
        for name, function in before.items():
            setattr(dist, name, function)
        for own, name in bound.items():
            setattr(backend, own, before[name])
