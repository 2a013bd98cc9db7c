"""Collectives with gradients, each named for what it does to the values; what it does to gradients
follows.

Of every pair, one is the other's backward: copies become sums, parts become wholes, and the
reverse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup


def all_reduce(x: Tensor, group: Group) -> Tensor:
    """The sum over the ranks, in a tensor of its own; without a gradient."""
    # A copy: the collective writes in place, and backward may still read x.
    x = x.contiguous().clone()
    dist.all_reduce(x, group=group)
    return x


def _gather(x: Tensor, dim: int, group: Group) -> Tensor:
    parts = [
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for _ in range(dist.get_world_size(group))
    ]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, dim=dim)


def _reduce_scatter(x: Tensor, dim: int, group: Group) -> Tensor:
    parts = [part.contiguous() for part in x.chunk(dist.get_world_size(group), dim=dim)]
    out = torch.empty_like(parts[0])
    dist.reduce_scatter(out, parts, group=group)
    return out


def _own(x: Tensor, dim: int, group: Group) -> Tensor:
    return x.chunk(dist.get_world_size(group), dim=dim)[dist.get_rank(group)].contiguous()


def _all_to_all(x: Tensor, cut: int, join: int, group: Group) -> Tensor:
    parts = [part.contiguous() for part in x.chunk(dist.get_world_size(group), dim=cut)]
    out = [torch.empty_like(part) for part in parts]
    if dist.get_backend(group) == "gloo":  # which has it for one flat tensor only
        flat = torch.stack(parts)
        got = torch.empty_like(flat)
        dist.all_to_all_single(got, flat, group=group)
        out = list(got.unbind())
    else:
        dist.all_to_all(out, parts, group=group)
    return torch.cat(out, dim=join)


def pass_on(x: Tensor, group: Group) -> Callable[[], Tensor]:
    """Give x to the next rank of a ring and take the previous one's: call what is returned to wait
    for it. Without a gradient."""
    size, rank, got = dist.get_world_size(group), dist.get_rank(group), torch.empty_like(x)
    to, from_ = (dist.get_global_rank(group, (rank + step) % size) for step in (1, -1))
    # Both in one batch: in a ring of sends that wait for receives nobody would continue.
    works = dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, x, to, group), dist.P2POp(dist.irecv, got, from_, group)]
    )

    def wait() -> Tensor:
        for work in works:
            work.wait()
        return got

    return wait


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        # A view: autograd treats an input that is returned as it is specially.
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduce(grad, ctx.group), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _reduce_scatter(grad, ctx.dim, ctx.group), None, None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _reduce_scatter(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _gather(grad, ctx.dim, ctx.group), None, None


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _own(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _gather(grad, ctx.dim, ctx.group), None, None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _own(grad, ctx.dim, ctx.group), None, None


class _Swap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cut: int, join: int, group: Group) -> Tensor:
        ctx.cut, ctx.join, ctx.group = cut, join, group
        return _all_to_all(x, cut, join, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(grad, ctx.join, ctx.cut, ctx.group), None, None, None


def copy(x: Tensor, group: Group) -> Tensor:
    """x, which every rank has. Each uses it for other work, so its gradients are summed."""
    return _Copy.apply(x, group)


def sum_over(x: Tensor, group: Group) -> Tensor:
    """The sum of every rank's x, on every rank. All do the same with it, so each has the whole
    gradient already."""
    return _Sum.apply(x, group)


def gather(x: Tensor, dim: int, group: Group) -> Tensor:
    """Every rank's part of `dim`, joined. Each rank uses the whole for other work, so gradients are
    summed."""
    return _Gather.apply(x, dim, group)


def scatter_sum(x: Tensor, dim: int, group: Group) -> Tensor:
    """The rank's own part of `dim` of the sum of every rank's x."""
    return _ScatterSum.apply(x, dim, group)


def own(x: Tensor, dim: int, group: Group) -> Tensor:
    """The rank's own part of `dim` of an x that all ranks have."""
    return _Own.apply(x, dim, group)


def join(x: Tensor, dim: int, group: Group) -> Tensor:
    """Every rank's part of `dim`, joined. All ranks do the same with the whole, so each keeps its
    part of the gradient."""
    return _Join.apply(x, dim, group)


def swap(x: Tensor, cut: int, join: int, group: Group) -> Tensor:
    """All-to-all: each rank gives up parts of dimension `cut`, and gets the others' parts of
    dimension `join`."""
    return _Swap.apply(x, cut, join, group)
