"""The decode state of a model of transformers: rows of one length share a cache, so nothing in it is padding."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minnow.model.state import LayerState


def is_known(cache: Any) -> bool:
    """Whether :class:`CachedRows` can tell the cache's rows apart."""
    from transformers.cache_utils import Cache

    return isinstance(cache, Cache)


@dataclass
class Group:
    """Rows of one length and transformers' cache of them; ``rows [N]`` are their places in the batch."""

    length: int
    rows: Tensor
    cache: Any


@dataclass
class CachedRows(LayerState):
    """The rows of all layers, those of equal length in one cache; a row that is over is in none."""

    count: int
    groups: list[Group]

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        for group in self.groups:
            _mapped(note, group.cache)
        return found

    def select(self, rows: Tensor) -> CachedRows:
        return CachedRows(len(rows), list(_chosen(self.groups, rows)))

    def join(self, other: CachedRows) -> CachedRows:
        moved = [Group(group.length, group.rows + self.count, group.cache) for group in other.groups]
        return CachedRows(self.count + other.count, _merged([*self.groups, *moved]))

    def copy(self) -> CachedRows:
        return CachedRows(self.count, _merged(self.groups))

    def keep(self, live: Tensor) -> None:
        """Drop the caches of rows where ``live [B]`` is False; the others keep their places."""
        whole = [group for group in self.groups if live[group.rows].all()]
        cut = [group for group in self.groups if not live[group.rows].all()]
        rows = live.nonzero()[:, 0]
        self.groups = whole + [Group(group.length, rows[group.rows], group.cache) for group in _chosen(cut, rows)]

    def restore(self, rows: Tensor, saved: CachedRows) -> None:
        others = torch.ones(self.count, dtype=torch.bool, device=rows.device).index_fill(0, rows, False)
        back = [Group(group.length, rows[group.rows], group.cache) for group in saved.groups]
        self.keep(others)
        self.groups = _merged([*self.groups, *back])


def _chosen(groups: Sequence[Group], rows: Tensor) -> Iterator[Group]:
    """The groups of a batch that row ``rows[i]`` is the new row ``i`` of, in memory of their own."""
    for group in groups:
        match = rows[:, None] == group.rows
        places = match.any(1).nonzero()[:, 0]
        if len(places):
            taken = match[places].int().argmax(1)
            yield Group(group.length, places, _rows_mapped(lambda part, taken=taken: part[taken], group))


def _merged(groups: Sequence[Group]) -> list[Group]:
    """One group for each length, in memory of its own."""
    by_length: dict[int, list[Group]] = defaultdict(list)
    for group in groups:
        by_length[group.length].append(group)
    return [
        Group(length, torch.cat([group.rows for group in same]), _rows_mapped(lambda *parts: torch.cat(parts), *same))
        for length, same in by_length.items()
    ]


def _rows_mapped(change: Callable[..., Tensor], *groups: Group) -> Any:
    """The groups' caches with ``change`` made to their tensors that hold a row for each row."""

    def each(tensor: Tensor, *others: Tensor) -> Tensor:
        has_rows = tensor.dim() > 0 and len(tensor) == len(groups[0].rows)
        return change(tensor, *others) if has_rows else tensor

    return _mapped(each, *(group.cache for group in groups))


def _mapped(change: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """A cache like ``first`` with ``change(tensor, tensors of others…)`` for every tensor in it."""
    from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

    if isinstance(first, Tensor):
        return change(first, *others)
    if isinstance(first, list | tuple):
        return type(first)(_mapped(change, *parts) for parts in zip(first, *others, strict=True))
    if isinstance(first, dict):
        return {name: _mapped(change, value, *(other[name] for other in others)) for name, value in first.items()}
    if isinstance(first, Cache | CacheLayerMixin | LinearAttentionCacheLayerMixin):
        made = copy.copy(first)
        vars(made).update(_mapped(change, vars(first), *map(vars, others)))
        return made
    return first
