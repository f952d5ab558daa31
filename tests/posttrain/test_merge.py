"""Merging methods against their published definitions in float64, and soups of state dicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from minnow.errors import UserError
from minnow.posttrain.merge import Merge, draws, kept_chance, merge_chunks, merge_tensors, soup

Array = NDArray[np.float64]


def member(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in (("a", (3, 4)), ("b", (5,)))}


@pytest.mark.parametrize("count", [1, 3])
def test_a_soup_is_the_mean(count: int) -> None:
    """Of a single one too: a run may end before there is a second checkpoint to average."""
    members = [member(seed) for seed in range(count)]
    before = [{name: tensor.clone() for name, tensor in each.items()} for each in members]
    made = soup(members)
    for name in ("a", "b"):
        wanted = torch.stack([each[name].double() for each in members]).mean(0)
        torch.testing.assert_close(made[name].double(), wanted, atol=1e-6, rtol=1e-6)
        assert all(torch.equal(x[name], y[name]) for x, y in zip(before, members, strict=True))


def test_halves_are_averaged_in_float32() -> None:
    """256 and 258 have no bfloat16 between them."""
    members = [{"a": torch.tensor([value]).bfloat16()} for value in (256.0, 258.0)]
    assert soup(members)["a"].dtype == torch.float32 and float(soup(members)["a"]) == 257.0


def test_different_shapes_are_refused() -> None:
    for other in ({"a": torch.ones(3, 4)}, {"a": torch.ones(3, 4), "b": torch.ones(6)}):
        with pytest.raises(UserError, match="differ in shape"):
            soup([member(0), other])


def tensors(count: int, shape: tuple[int, ...] = (7, 12), seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def slerp(share: float, first: Array, second: Array) -> Array:
    """Shoemake 1985, between tensors of any length."""
    cosine = np.sum(first / np.linalg.norm(first) * second / np.linalg.norm(second))
    angle = np.arccos(cosine)
    return (np.sin((1 - share) * angle) * first + np.sin(share * angle) * second) / np.sin(angle)


def trimmed(tau: Array, density: float) -> Array:
    """TIES, step 1: the largest share of magnitudes, the rest 0."""
    kept = np.argsort(-np.abs(tau), axis=None)[: round(density * tau.size)]
    out = np.zeros(tau.size)
    out[kept] = tau.ravel()[kept]
    return out.reshape(tau.shape)


def elected(taus: Sequence[Array], weights: Sequence[float]) -> Array:
    """TIES, steps 2 and 3, entry by entry."""
    out = np.zeros_like(taus[0])
    for place in np.ndindex(out.shape):
        weighted = [(w, tau[place]) for w, tau in zip(weights, taus, strict=True)]
        sign = np.sign(sum(w * value for w, value in weighted))
        agreeing = [(w, value) for w, value in weighted if np.sign(value) == sign and value]
        out[place] = sum(w * value for w, value in agreeing) / sum(w for w, _ in agreeing) if agreeing else 0.0
    return out


def published(settings: Merge, base: Array, models: Sequence[Array], weights: Sequence[float]) -> Array:
    taus = [model - base for model in models]
    if settings.method == "ties":
        return base + settings.scale * elected([trimmed(tau, settings.density) for tau in taus], weights)
    dropped = []
    for place, tau in enumerate(taus):
        if settings.method in ("dare", "della"):
            keep = np.full(tau.shape, settings.density)
            for row in range(len(tau)) if settings.method == "della" else ():
                order = np.argsort(np.abs(tau[row]), kind="stable")[::-1]
                for rank, column in enumerate(order):  # 0 for the largest, which DELLA drops least
                    drop = (1 - settings.density) - settings.epsilon / 2 + settings.epsilon * rank / tau.shape[1]
                    keep[row, column] = 1 - drop
            luck = draws(tau.shape, settings.seed, f"{place}/w/0").numpy()
            dropped.append(np.where(luck < keep, tau / keep, 0))
        else:
            dropped.append(tau)
    if settings.method == "della":
        return base + settings.scale * elected(dropped, weights)
    return base + settings.scale * sum(w * tau for w, tau in zip(weights, dropped, strict=True))


@pytest.mark.parametrize("weights", [(), (0.3, 0.9, 0.6)])
@pytest.mark.parametrize("method", ["task-arithmetic", "ties", "dare", "della"])
def test_what_training_changed_is_merged_as_published(method: str, weights: tuple[float, ...]) -> None:
    settings = Merge(method, weights, density=0.6, scale=0.7, epsilon=0.3, seed=4)  # type: ignore[arg-type]
    base, *models = tensors(4)
    wanted = published(settings, base.numpy(), [each.numpy() for each in models], weights or (1.0, 1.0, 1.0))
    np.testing.assert_allclose(merge_tensors([base, *models], settings, "w").numpy(), wanted, rtol=1e-6, atol=1e-7)
    halves = [each.bfloat16() for each in (base, *models)]
    wanted = published(settings, *_exact(halves), weights or (1.0, 1.0, 1.0))
    np.testing.assert_allclose(merge_tensors(halves, settings, "w").numpy(), wanted, rtol=1e-4, atol=1e-5)


def _exact(halves: list[torch.Tensor]) -> tuple[Array, list[Array]]:
    base, *models = (each.double().numpy() for each in halves)
    return base, models


@pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
def test_slerp_follows_the_arc(weights: tuple[float, ...]) -> None:
    first, second = tensors(2)
    share = 0.25 if weights else 0.5
    made = merge_tensors([first, second], Merge("slerp", weights))
    np.testing.assert_allclose(made.numpy(), slerp(share, first.numpy(), second.numpy()), rtol=1e-12)
    same = merge_tensors([first, first * 2], Merge("slerp", weights))
    torch.testing.assert_close(same, first * (1 + share)), "parallel tensors have no arc between them"


@pytest.mark.parametrize("method", ["average", "slerp", "task-arithmetic", "ties"])
def test_chunks_give_what_whole_tensors_give(method: str) -> None:
    settings = Merge(method, density=0.37)  # type: ignore[arg-type]
    given = [each.float() for each in tensors(3 if settings.needs_base else 2, (40, 11))]

    def chunks() -> list[list[torch.Tensor]]:
        return [[each[start : start + 7] for each in given] for start in range(0, 40, 7)]

    torch.testing.assert_close(torch.cat(list(merge_chunks(chunks, settings, "w"))), merge_tensors(given, settings))


def test_ties_keeps_the_largest_to_the_last_bit() -> None:
    """Magnitudes that differ in the lowest bit only, and equal ones, which are kept together."""
    tau = torch.nextafter(torch.ones(64), torch.full((64,), 2.0)) * torch.tensor([1.0, -1.0] * 32)
    tau[:16] = 1.0
    made = merge_tensors([torch.zeros(64), tau], Merge("ties", density=0.5))
    assert int((made != 0).sum()) == 48 and torch.equal(made[16:], tau[16:])


@pytest.mark.parametrize("method", ["dare", "della"])
def test_what_is_dropped_is_made_up_for(method: str) -> None:
    """The mean over many draws is tau; the share kept is the density."""
    settings: Callable[[int], Merge] = lambda seed: Merge(method, density=0.4, seed=seed)  # type: ignore[arg-type]
    base, model = torch.zeros(4, 50), tensors(1, (4, 50), seed=3)[0].float()
    made = torch.stack([merge_tensors([base, model], settings(seed)) for seed in range(3000)])
    assert abs(float((made != 0).float().mean()) - 0.4) < 0.01
    assert float(((made.mean(0) - model) / model.abs()).abs().max()) < 0.15
    chance = kept_chance(model, settings(0))
    assert float(chance.min()) > 0.29 and float(chance.max()) <= 0.5 + 1e-6


def test_settings_that_cannot_be_are_refused() -> None:
    for settings, models, sentence in (
        ({"method": "slerp"}, 3, "from one model to one other"),
        ({"weights": (1.0,)}, 2, "1 weights for 2 models"),
        ({"weights": (0.0, 0.0)}, 2, "make no mean"),
        ({}, 1, "nothing to merge"),
    ):
        with pytest.raises(UserError, match=sentence):
            Merge(**settings).shares(models)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="above 0 and at most 1"):
        Merge("ties", density=0.0)
    with pytest.raises(UserError, match="lower epsilon"):
        Merge("della", density=0.1, epsilon=0.4)
