"""Merging checkpoints of one family, tensor by tensor: averages, SLERP, and sums of what training changed.

``tau_i = theta_i - base`` is what training has changed in a model. All sums are in float32 (float64 for such tensors).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minnow.errors import UserError

Method = Literal["average", "slerp", "task-arithmetic", "ties", "dare", "della"]
Chunks = Callable[[], Iterable[list[Tensor]]]
"""Whole rows of one tensor in every model, the base (where the method has one) first; can be read more than once."""

_PARALLEL = 0.9995  # cosine above which an arc and its chord are the same


@dataclass(frozen=True)
class Merge:
    """How models become one.

    Attributes:
        method: ``average`` (model soups, arXiv 2203.05482): mean by ``weights``. ``slerp``: of two models along the arc
            between each two tensors, at the second one's share of the weights. ``task-arithmetic`` (arXiv 2212.04089):
            ``base + scale * sum w_i tau_i``. ``ties`` (arXiv 2306.01708): each tau keeps its largest entries, and at
            every place the mean of those with the sign of their sum is added, times ``scale``. ``dare`` (arXiv
            2311.03099): task arithmetic after entries of tau are dropped at random and the rest is scaled up.
            ``della`` (arXiv 2406.11617): dropped at random too, small entries of a row more readily than large ones,
            then as ``ties``.
        weights: of the models; all equal by default (1 each in sums).
        density: share of tau's entries that is kept.
        scale: of what is added to the base.
        epsilon: of ``della``: how far the chances of a row's smallest and largest entries lie apart.
        seed: of what is dropped.
    """

    method: Method = "average"
    weights: tuple[float, ...] = ()
    density: float = 0.5
    scale: float = 1.0
    epsilon: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1 or self.epsilon < 0 or not math.isfinite(self.scale):
            raise UserError(
                f"density is {self.density:g}, epsilon {self.epsilon:g} and scale {self.scale:g}; the density is above 0 "
                "and at most 1, epsilon at least 0 and the scale a finite number"
            )
        half = self.epsilon / 2
        if self.method == "della" and not (half < self.density and self.density + half <= 1):
            raise UserError(
                f"density {self.density:g} with epsilon {self.epsilon:g} gives chances outside 0 to 1; lower epsilon"
            )

    @property
    def needs_base(self) -> bool:
        """Whether the method merges what training changed."""
        return self.method not in ("average", "slerp")

    def shares(self, models: int) -> list[float]:
        """The weights of ``models`` models.

        Raises:
            UserError: there are others than models, too few or too many models, or an average of no weight.
        """
        weights = list(self.weights) or [1.0] * models
        if len(weights) != models:
            raise UserError(
                f"there are {len(weights)} weights for {models} models; give each model one, or none at all"
            )
        if self.method == "slerp" and models != 2:
            raise UserError(f"slerp goes from one model to one other, not through {models}; use average for more")
        if models < (1 if self.needs_base else 2):
            raise UserError("there is nothing to merge; name at least two models")
        if not self.needs_base:
            if min(weights) < 0 or not sum(weights):
                raise UserError(f"the weights {', '.join(f'{w:g}' for w in weights)} make no mean; use some above 0")
            weights = [weight / sum(weights) for weight in weights]
        return weights


def merge_chunks(chunks: Chunks, settings: Merge, name: str) -> Iterator[Tensor]:
    """The merged tensor in the chunks in which the models' come.

    Args:
        chunks: see :data:`Chunks`; read twice or three times by ``slerp`` and ``ties``.
        name: the tensor's; what is dropped depends on it, on the model's place and on the seed.
    """
    exact: Chunks = lambda: ([_exact(part) for part in parts] for parts in chunks())
    if not settings.needs_base:
        shares = _arc(exact(), settings) if settings.method == "slerp" else None
        for parts in exact():
            yield _sum(shares or settings.shares(len(parts)), parts)
        return
    floors = _floors(exact, settings.density) if settings.method == "ties" else []
    for number, (base, *parts) in enumerate(exact()):
        weights, taus = settings.shares(len(parts)), [part - base for part in parts]
        if settings.method == "ties":
            taus = [torch.where(tau.abs().float() >= floor, tau, 0) for tau, floor in zip(taus, floors, strict=True)]
        elif settings.method in ("dare", "della"):
            for place, tau in enumerate(taus):
                chance = kept_chance(tau, settings)
                kept = draws(tau.shape, settings.seed, f"{place}/{name}/{number}") < chance
                taus[place] = torch.where(kept, tau / chance, 0)
        added = _elected(weights, taus) if settings.method in ("ties", "della") else _sum(weights, taus)
        yield base + settings.scale * added


def merge_tensors(tensors: Sequence[Tensor], settings: Merge, name: str = "") -> Tensor:
    """One tensor of every model, the base first where the method has one."""
    (merged,) = merge_chunks(lambda: [list(tensors)], settings, name)
    return merged


def soup(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of state dicts of one shape, of one or more (arXiv 2203.05482).

    Raises:
        UserError: the members do not have the same tensors.
    """
    first = members[0]
    for member in members[1:]:
        if {n: t.shape for n, t in member.items()} != {n: t.shape for n, t in first.items()}:
            raise UserError("the checkpoints differ in shape and cannot be averaged; merge checkpoints of one model")
    shares = [1 / len(members)] * len(members)
    return {name: _sum(shares, [_exact(member[name]) for member in members]) for name in first}


def kept_chance(tau: Tensor, settings: Merge) -> Tensor:
    """The chance that each entry of ``tau`` is kept: the density, or with ``della`` between ``density - epsilon / 2``
    and ``density + epsilon / 2`` by the rank of its magnitude in its row (a vector is one row)."""
    if settings.method != "della":
        return torch.full_like(tau, settings.density)
    rank = tau.abs().argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)  # 0 for the smallest
    return settings.density - settings.epsilon / 2 + settings.epsilon * (rank + 1) / tau.shape[-1]


def draws(shape: Sequence[int], seed: int, key: str) -> Tensor:
    """Uniform numbers in [0, 1) that depend on ``seed`` and ``key`` alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{key}".encode()))
    return torch.rand(tuple(shape), generator=generator)


def _exact(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _sum(weights: Iterable[float], parts: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(parts[0])
    for weight, part in zip(weights, parts, strict=True):
        total += weight * part
    return total


def _elected(weights: Sequence[float], taus: Sequence[Tensor]) -> Tensor:
    """The mean of those entries whose sign is that of the weighted sum; 0 where there is none."""
    sign = _sum(weights, taus).sign()
    total, weight = torch.zeros_like(sign), torch.zeros_like(sign)
    for share, tau in zip(weights, taus, strict=True):
        agrees = ((share * tau).sign() == sign) & (tau != 0)
        total += share * torch.where(agrees, tau, 0)
        weight += share * agrees
    return torch.where(weight != 0, total / weight, 0)


def _arc(chunks: Iterable[list[Tensor]], settings: Merge) -> list[float]:
    """What each of two tensors is multiplied by at the second one's share of the angle between them."""
    share = settings.shares(2)[1]
    first_square = second_square = product = 0.0
    for first, second in chunks:
        first_square += float(first.double().square().sum())
        second_square += float(second.double().square().sum())
        product += float((first.double() * second.double()).sum())
    norm = math.sqrt(first_square * second_square)
    cosine = product / norm if norm else 1.0
    if abs(cosine) > _PARALLEL:
        return [1 - share, share]
    angle = math.acos(cosine)
    return [math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)]


def _floors(chunks: Chunks, density: float) -> list[Tensor]:
    """Of each model the magnitude of the smallest entry of tau that is kept; equal ones are kept as well.

    Magnitudes are counted by the upper and then by the lower 16 bits of their float32 pattern, which orders as they do.
    """
    high: list[Tensor] = []
    count = 0
    for base, *parts in chunks():
        high = high or [torch.zeros(1 << 16, dtype=torch.long) for _ in parts]
        count += base.numel()
        for found, part in zip(high, parts, strict=True):
            found += torch.bincount(_pattern(part - base) >> 16, minlength=1 << 16)
    wanted = max(1, round(density * count))
    places = [_reached(found, wanted) for found in high]
    low = [torch.zeros(1 << 16, dtype=torch.long) for _ in high]
    for base, *parts in chunks():
        for found, part, (place, _) in zip(low, parts, places, strict=True):
            pattern = _pattern(part - base)
            found += torch.bincount(pattern[pattern >> 16 == place] & 0xFFFF, minlength=1 << 16)
    floors = []
    for found, (place, left) in zip(low, places, strict=True):
        bits = (place << 16) + _reached(found, left)[0]
        floors.append(torch.tensor([bits], dtype=torch.int32).view(torch.float32)[0])
    return floors


def _pattern(tau: Tensor) -> Tensor:
    return tau.abs().float().flatten().view(torch.int32).long()


def _reached(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin in which the ``wanted``-th largest lies, and how many of that bin are wanted."""
    above = counts.flip(0).cumsum(0)
    place = int((above >= wanted).nonzero()[0])
    return len(counts) - 1 - place, wanted - int(above[place] - counts.flip(0)[place])
