"""The optimiser against torch's AdamW and Muon, and what it must leave alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from minnow.model.backbone import Backbone
from minnow.train.optimizer import MUON_SHARE, Optimizer, OptimizerSettings, choose_muon, muon_cost, orthogonalise


class Table(nn.Module):
    """A matrix and a vector."""

    def __init__(self, rows: int = 12, columns: int = 20) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(rows, columns, generator=generator))
        self.vector = nn.Parameter(torch.randn(columns, generator=generator))


def gradients(model: nn.Module, step: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [scale * torch.randn(parameter.shape, generator=generator) for parameter in model.parameters()]


def give(model: nn.Module, values: list[Tensor]) -> None:
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.grad = value.to(parameter.dtype).clone()


def clipped(values: list[Tensor], most: float) -> list[Tensor]:
    norm = math.sqrt(sum(float(value.square().sum()) for value in values))
    return [value * min(1.0, most / norm) for value in values]


@pytest.mark.parametrize("clip", [1e9, 0.5])
def test_adamw_equals_torch(clip: float) -> None:
    """Matrices decay, vectors do not; gradients are divided by the weight before they are clipped."""
    ours, theirs = Table(), Table()
    chosen = OptimizerSettings(muon=False, weight_decay=0.2, clip=clip)
    optimizer = Optimizer(ours, chosen, torch.float32, {"matrix": [12]})
    groups = [{"params": [theirs.matrix], "weight_decay": 0.2}, {"params": [theirs.vector], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, betas=chosen.betas, eps=chosen.eps)
    for step in range(6):
        rate, wanted = 1e-2 / (1 + step), gradients(ours, step)
        give(ours, [8.0 * value for value in wanted])
        optimizer.collect()
        norm = optimizer.step(rate, 8.0)
        assert norm == pytest.approx(math.sqrt(sum(float(v.square().sum()) for v in wanted)), rel=1e-5)
        give(theirs, clipped(wanted, clip))
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_muon_equals_torch(shape: tuple[int, int]) -> None:
    """``match_rms_adamw`` is our scaling. Torch orthogonalises in bfloat16 whatever the weights are, hence the
    tolerance; a wrong scale, sign, momentum or decay would be off by far more."""
    ours, theirs = Table(*shape), Table(*shape)
    chosen = OptimizerSettings(weight_decay=0.1, clip=1e9)
    optimizer = Optimizer(ours, chosen, torch.float32, {"matrix": [shape[0]]})
    reference = torch.optim.Muon(
        [theirs.matrix], weight_decay=0.1, momentum=chosen.momentum, adjust_lr_fn="match_rms_adamw"
    )
    before = ours.matrix.detach().clone()
    for step in range(6):
        rate = 3e-2 / (1 + step)
        give(ours, gradients(ours, step))
        theirs.matrix.grad = gradients(theirs, step)[0]
        optimizer.collect()
        optimizer.step(rate, 1.0)
        reference.param_groups[0]["lr"] = rate
        reference.step()
    moved = (theirs.matrix.detach() - before).norm()
    assert float((ours.matrix - theirs.matrix).detach().norm() / moved) < 0.02
    assert float(moved) > 0.1


def test_logical_matrices_are_orthogonalised_apart() -> None:
    """A fused matrix of blocks 8 and 4 moves as two matrices of their own would."""
    fused = Table(12, 20)
    optimizer = Optimizer(fused, OptimizerSettings(clip=1e9, weight_decay=0.0), torch.float32, {"matrix": [8, 4]})
    before = fused.matrix.detach().clone()
    values = gradients(fused, 0)
    give(fused, values)
    optimizer.collect()
    optimizer.step(1e-2, 1.0)
    blocks = []
    for rows in (slice(0, 8), slice(8, 12)):
        momentum = 0.05 * values[0][rows]  # the buffer starts at zero
        nesterov = 0.05 * values[0][rows] + 0.95 * momentum
        blocks.append(0.2 * math.sqrt(20) * 1e-2 * orthogonalise(nesterov[None])[0])
    torch.testing.assert_close(before - fused.matrix, torch.cat(blocks), atol=1e-6, rtol=1e-4)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(2, 24), st.integers(2, 24), st.integers(0, 99), st.sampled_from([1e-6, 1.0, 1e5]))
def test_orthogonalise_brings_singular_values_near_one(
    count: int, rows: int, columns: int, seed: int, scale: float
) -> None:
    """Condition number 10, any scale; the singular vectors stay, so the product with the polar factor is near I."""
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(count, rows, columns, generator=generator), full_matrices=False)
    values = torch.logspace(-1, 0, min(rows, columns))
    out = orthogonalise(scale * (u * values) @ v)
    singular = torch.linalg.svdvals(out)
    assert float(singular.min()) > 0.6 and float(singular.max()) < 1.3
    along = u.mT @ out @ v.mT
    torch.testing.assert_close(along, torch.diag_embed(along.diagonal(dim1=1, dim2=2)), atol=1e-3, rtol=0)


def test_muon_is_chosen_by_what_it_costs(make_model: Callable[..., Backbone]) -> None:
    """The cost is what torch counts while it orthogonalises and while the model's matrices are used."""
    model, tokens = make_model(), 4096
    parameters = dict(model.named_parameters())
    with FlopCounterMode(display=False) as counter:
        for name, sizes in model.matrices().items():
            for rows in sizes:
                orthogonalise(torch.ones(1, rows, parameters[name].shape[1]))
    weights = sum(weight.numel() for weight in parameters.values() if weight.dim() >= 2)
    assert muon_cost(model, tokens) == pytest.approx(counter.get_total_flops() / (6 * weights * tokens))
    auto = OptimizerSettings()
    enough = math.ceil(muon_cost(model, 1) / MUON_SHARE)
    assert choose_muon(auto, model, enough).muon is True and choose_muon(auto, model, enough // 2).muon is False
    for said in (True, False):
        assert choose_muon(OptimizerSettings(muon=said), model, 1).muon is said


def test_orthogonalise_leaves_zero_zero() -> None:
    assert not orthogonalise(torch.zeros(2, 3, 5)).any()
    assert not orthogonalise(torch.zeros(1, 5, 3, dtype=torch.bfloat16)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(
    make_model: Callable[..., Backbone], dtype: torch.dtype, bad: float
) -> None:
    model = make_model()
    optimizer = Optimizer(model, OptimizerSettings(), dtype, model.matrices())
    give(model, gradients(model, 0))
    optimizer.collect()
    optimizer.step(1e-2, 1.0)
    before = [tensor.clone() for tensor in [*optimizer.masters, *optimizer.first, *model.parameters()]]
    values = gradients(model, 1)
    values[3].view(-1)[5] = bad
    give(model, values)
    optimizer.collect()
    assert not math.isfinite(optimizer.step(1e-2, 1.0))
    after = [*optimizer.masters, *optimizer.first, *model.parameters()]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert optimizer.steps == 1
    give(model, gradients(model, 2))
    optimizer.collect()
    assert math.isfinite(optimizer.step(1e-2, 1.0)) and optimizer.steps == 2


def test_micro_batches_add_up_in_float32() -> None:
    """In bfloat16 sums, 256 and 1 would stay 256."""
    model = Table()
    optimizer = Optimizer(model, OptimizerSettings(muon=False, clip=1e9), torch.bfloat16, {})
    for value in (256.0, 1.0, 1.0):
        give(model, [torch.full_like(p, value, dtype=torch.float32) for p in model.parameters()])
        optimizer.collect()
        assert all(parameter.grad is None for parameter in model.parameters())
    assert optimizer.step(0.0, 258.0) == pytest.approx(math.sqrt(12 * 20 + 20), rel=1e-6)


def test_compute_weights_are_the_rounded_masters(make_model: Callable[..., Backbone]) -> None:
    model = make_model()
    wanted = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = Optimizer(model, OptimizerSettings(), torch.bfloat16, model.matrices())
    assert all(torch.equal(wanted[name], master) for name, master in optimizer.weights().items())
    for step in range(3):
        give(model, gradients(model, step))
        optimizer.collect()
        optimizer.step(1e-4, 1.0)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, optimizer.weights()[name].bfloat16())
        assert not torch.equal(optimizer.weights()[name], wanted[name]), f"{name} never moved"


def test_small_updates_are_not_lost_to_bfloat16() -> None:
    """A thousand updates of 1e-5 move a weight of 1, whose bfloat16 neighbours are 0.004 away, by 0.01."""
    model = Table(1, 1)
    with torch.no_grad():
        model.matrix.fill_(1.0)
    optimizer = Optimizer(model, OptimizerSettings(muon=False, weight_decay=0.0), torch.bfloat16, {})
    for _ in range(1000):
        give(model, [torch.ones_like(p) for p in model.parameters()])
        optimizer.collect()
        optimizer.step(1e-5, 1.0)
    assert float(optimizer.weights()["matrix"]) == pytest.approx(0.99, abs=1e-4)
    assert float(model.matrix.detach()) == pytest.approx(0.99, abs=0.004)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_goes_on_as_the_first(make_model: Callable[..., Backbone], dtype: torch.dtype) -> None:
    def advance(model: Backbone, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            give(model, gradients(model, step))
            optimizer.collect()
            optimizer.step(1e-2, 2.0)

    model, other = make_model(), make_model(seed=9)
    optimizer = Optimizer(model, OptimizerSettings(), dtype, model.matrices())
    advance(model, optimizer, range(3))
    resumed = Optimizer(other, OptimizerSettings(), dtype, other.matrices())
    state = optimizer.state()
    resumed.restore({**state, "masters": {name: t.clone() for name, t in state["masters"].items()}})
    advance(model, optimizer, range(3, 5))
    advance(other, resumed, range(3, 5))
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), other.parameters(), strict=True))
