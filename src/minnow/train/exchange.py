"""Rows that travel between ranks, and gradients that travel back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


def exchange(x: Tensor, sent: Sequence[int], received: Sequence[int], group: Any) -> Tensor:
    """Send the first ``sent[0]`` rows of ``x`` to the group's first rank and so on; all its ranks call it together.

    Args:
        received: rows that come from each rank.

    Returns:
        ``[sum(received), ...]``, those of the first rank first.
    """
    return _Exchange.apply(x, sent, received, group)


class _Exchange(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: Sequence[int], received: Sequence[int], group: Any) -> Tensor:
        ctx.back = received, sent, group
        return _exchange(x, sent, received, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _exchange(gradient, *ctx.back), None, None, None


def _exchange(x: Tensor, sent: Sequence[int], received: Sequence[int], group: Any) -> Tensor:
    arrived = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(arrived, x.contiguous(), list(received), list(sent), group=group)
    return arrived


def receive(anchor: Tensor, shape: Sequence[int], dtype: torch.dtype, source: int, group: Any) -> Tensor:
    """What the group's rank ``source`` gives to :func:`send`.

    Args:
        anchor: any tensor that a gradient is wanted of, for the gradient of this to travel back.
    """
    return _Receive.apply(anchor, shape, dtype, source, group)


def send(x: Tensor, beside: Tensor, target: int, group: Any) -> Tensor:
    """Send ``x`` to the group's rank ``target``; gives ``beside``, through which the gradient of ``x`` comes back."""
    return _Send.apply(x, beside, target, group)


class _Receive(Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, shape: Sequence[int], dtype: torch.dtype, source: int, group: Any) -> Tensor:
        ctx.back = source, group
        arrived = anchor.new_empty(shape, dtype=dtype)
        dist.recv(arrived, group=group, group_src=source)
        return arrived

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        source, group = ctx.back
        dist.send(gradient.contiguous(), group=group, group_dst=source)
        return None, None, None, None, None


class _Send(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, beside: Tensor, target: int, group: Any) -> Tensor:
        ctx.back, ctx.like = (target, group), (x.shape, x.dtype)
        dist.send(x.contiguous(), group=group, group_dst=target)
        return beside.view_as(beside)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (target, group), (shape, dtype) = ctx.back, ctx.like
        arrived = gradient.new_empty(shape, dtype=dtype)
        dist.recv(arrived, group=group, group_src=target)
        return arrived, gradient, None, None
