"""Distillation against the dense formulas in float64, the cache against the live teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from minnow.data.loader import Loader
from minnow.data.packing import Packed
from minnow.data.rows import Batch
from minnow.errors import UserError
from minnow.model import kernels
from minnow.model.backbone import Backbone
from minnow.train import vocabulary
from minnow.train.distillation import (
    Distillation,
    DistillationSettings,
    TeacherCache,
    ask,
    divergence,
)
from minnow.train.objectives import split_rows


def dense_kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(-1)


def dense_divergence(teacher: Tensor, student: Tensor, k: int, temperature: float) -> Tensor:
    """From whole float64 logits, by the definition."""
    p, q = teacher.softmax(-1), student.softmax(-1)
    top = p.topk(k).indices
    mass_p, mass_q = p.gather(1, top).sum(1), q.gather(1, top).sum(1)
    masses = dense_kl(torch.stack([mass_p, 1 - mass_p], 1), torch.stack([mass_q, 1 - mass_q], 1))
    tempered = ((logits.gather(1, top) / temperature).softmax(-1) for logits in (teacher, student))
    return masses + mass_p * temperature**2 * dense_kl(*tempered)


def drawn(positions: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return tuple(3 * torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def answers(teacher: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    log_probs = teacher.log_softmax(-1)
    best = log_probs.topk(k)
    return best.indices, best.values, 1 - best.values.exp().sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, 8])
def test_divergence_equals_the_dense_definition(k: int, temperature: float) -> None:
    teacher, student = drawn(30, 60)
    wide = student.clone().requires_grad_()
    wanted = dense_divergence(teacher, wide, k, temperature)
    narrow = student.float().requires_grad_()
    value = divergence(narrow, *answers(teacher, k), temperature)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-5)
    mine, theirs = torch.autograd.grad(value.sum(), narrow)[0], torch.autograd.grad(wanted.sum(), wide)[0]
    assert float((mine.double() - theirs).norm() / theirs.norm()) < 1e-5


def test_at_temperature_one_it_is_the_divergence_with_all_others_as_one_token() -> None:
    teacher, student = drawn(20, 60)
    likely, log_probs, rest = answers(teacher, 6)
    q = student.softmax(-1).gather(1, likely)
    lumped = [torch.cat([part, 1 - part.sum(1, keepdim=True)], 1) for part in (log_probs.exp(), q)]
    torch.testing.assert_close(divergence(student, likely, log_probs, rest, 1.0), dense_kl(*lumped))


def test_a_teacher_that_is_certain_gives_finite_numbers() -> None:
    """All its mass on the K tokens, and a student that is as certain."""
    teacher = torch.full((3, 20), -200.0, dtype=torch.float64)
    teacher[:, 5] = 200.0
    student = teacher.float().requires_grad_()
    value = divergence(student, *answers(teacher, 4), 2.0)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert (
        value.isfinite().all()
        and gradient.isfinite().all()
        and float(value.detach().sum()) == pytest.approx(0.0, abs=1e-5)
    )


def rows_of(seed: int, rows: int, length: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(14, 500, (rows, length), generator=generator)
    targets = tokens.roll(-1, 1)
    targets[:, -1] = kernels.IGNORED
    return Batch(tokens, targets, torch.ones_like(tokens))


def test_the_objective_equals_the_dense_one(
    make_model: Callable[..., Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way, loss and every gradient, with chunks of five positions and a live teacher."""
    student, teacher = make_model(), make_model(seed=7)
    batch, settings = rows_of(0, 3), DistillationSettings(k=8, temperature=2.0, weight=0.3)
    monkeypatch.setattr(vocabulary, "CHUNK_LOGITS", 5 * len(student.head))
    loss = Distillation(settings, teacher)(student, batch)
    loss.total.backward()
    mine = [parameter.grad for parameter in student.parameters()]
    student.zero_grad()

    wide, wide_teacher = student.double(), teacher.double()
    wanted = batch.targets != kernels.IGNORED
    logits, known = (model.logits(model(batch.tokens, batch.documents))[wanted] for model in (wide, wide_teacher))
    next_token = torch.nn.functional.cross_entropy(logits, batch.targets[wanted], reduction="sum")
    taught = dense_divergence(known.detach(), logits, 8, 2.0).sum()
    total = 0.7 * next_token + 0.3 * taught
    total.backward()
    assert float(loss.total) == pytest.approx(float(total), rel=1e-5)
    assert loss.metrics["next_token_loss"] == pytest.approx(float(next_token), rel=1e-5)
    assert loss.metrics["teacher_divergence"] == pytest.approx(float(taught), rel=1e-5)
    assert loss.weight == float(wanted.sum())
    for one, parameter in zip(mine, wide.parameters(), strict=True):
        assert one is not None and parameter.grad is not None
        assert float((one.double() - parameter.grad).norm()) <= 2e-5 * float(parameter.grad.norm()) + 1e-9


def corpus(rows: int = 11) -> Packed:
    batch = rows_of(3, rows)
    arrays = (batch.tokens.numpy(), batch.targets.numpy(), batch.documents.numpy())
    return Packed(arrays[0].astype(np.int32), arrays[1].astype(np.int32), arrays[2].astype(np.int16))


def test_cached_answers_are_the_live_ones(make_model: Callable[..., Backbone], tmp_path: Path) -> None:
    """Each batch's rows are found again, in every epoch; only the log-probabilities are rounded, to float16."""
    teacher, packed = make_model(seed=7), corpus()
    cache = TeacherCache.build(teacher, packed, 8, tmp_path / "cache", "digest", rows=4)
    again = TeacherCache.open(tmp_path / "cache", "digest")
    assert isinstance(again.likely, np.memmap) and again.likely.dtype == np.uint16
    loader = Loader(packed, 3, 5)
    for step in (0, 1, 2, 3, 7):
        batch = loader.batch(step)
        live, kept = ask(teacher, batch, 8), cache.batch(batch)
        assert torch.equal(live.likely, kept.likely)
        torch.testing.assert_close(kept.rest, live.rest)
        torch.testing.assert_close(kept.log_probs, live.log_probs, rtol=1e-3, atol=1e-4)
        student = make_model()
        objective = Distillation(DistillationSettings(k=8), teacher)
        assert float(objective(student, kept).total) == pytest.approx(float(objective(student, live).total), rel=1e-3)


def test_parts_of_a_taught_batch_add_up(make_model: Callable[..., Backbone]) -> None:
    student, teacher = make_model(), make_model(seed=7)
    objective = Distillation(DistillationSettings(k=8))
    batch = ask(teacher, rows_of(0, 5), 8)
    parts = [objective(student, part) for part in split_rows(batch, 2)]
    assert len(parts) == 3
    assert sum(float(part.total) for part in parts) == pytest.approx(float(objective(student, batch).total), rel=1e-5)


def test_what_does_not_fit_is_a_sentence(make_model: Callable[..., Backbone], tmp_path: Path) -> None:
    teacher, packed = make_model(), corpus(4)
    with pytest.raises(UserError, match="choose a smaller k"):
        ask(teacher, rows_of(0, 1), len(teacher.head))
    TeacherCache.build(teacher, packed, 2, tmp_path / "cache", "one")
    with pytest.raises(UserError, match="another teacher or to another corpus"):
        TeacherCache.open(tmp_path / "cache", "other")
    file = tmp_path / "cache/log_probs.npy"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged"):
        TeacherCache.open(tmp_path / "cache", "one")
    with pytest.raises(UserError, match="temperature"):
        DistillationSettings(temperature=0.0)
