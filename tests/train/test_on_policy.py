"""On-policy distillation against the dense definitions in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minnow.data.rows import Batch
from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.train import vocabulary
from minnow.train.objectives import pack_sequences, split_rows
from minnow.train.on_policy import OnPolicyDistillation, OnPolicySettings, divergence

TOKENS = 500  # of 512 rows of the head


def dense(teacher: Tensor, student: Tensor, beta: float) -> Tensor:
    """From whole float64 logits, as the paper writes it."""
    t, s = teacher.softmax(-1), student.softmax(-1)
    if beta in (0, 1):
        first, second = (s, t) if beta else (t, s)
        return (first * (first / second).log()).sum(-1)
    m = beta * t + (1 - beta) * s
    return beta * (t * (t / m).log()).sum(-1) + (1 - beta) * (s * (s / m).log()).sum(-1)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    draw = lambda n: torch.randint(8, TOKENS, (n,), generator=generator).tolist()
    packed = pack_sequences([draw(n) for n in (5, 3, 7)], [draw(n) for n in (9, 14, 4)], 24)
    return Batch(packed.tokens, packed.targets, packed.documents)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_the_loss_and_its_gradient_are_the_definitions(
    batch: Batch, beta: float, make_model: Callable[..., Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of a few positions; the teacher is a wider model with a larger head."""
    monkeypatch.setattr(vocabulary, "CHUNK_LOGITS", 512 * 10)
    student = make_model(seed=1)
    teacher = make_model(seed=2, vocab_size=544, hidden_size=96, num_heads=6)
    wanted = batch.targets >= 0
    loss = OnPolicyDistillation(OnPolicySettings(beta), teacher, TOKENS)(student, batch)
    loss.total.backward()
    mine = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}

    exact = make_model(seed=1).double()
    theirs = teacher.double().logits(teacher.double()(batch.tokens, batch.documents))[wanted][:, :TOKENS]
    ours = exact.logits(exact(batch.tokens, batch.documents))[wanted][:, :TOKENS]
    value = dense(theirs.detach(), ours, beta).sum()
    value.backward()
    assert loss.weight == float(wanted.sum()) == 27.0
    assert float(loss.total.detach()) == pytest.approx(float(value.detach()), rel=1e-4)
    for name, parameter in exact.named_parameters():
        assert parameter.grad is not None
        difference = (mine[name].double() - parameter.grad).norm() / parameter.grad.norm()
        assert float(difference) < 1e-3, name
    said = batch.targets[wanted]
    ratio = (ours.log_softmax(-1) - theirs.log_softmax(-1)).gather(1, said[:, None]).sum()
    assert loss.metrics["log_ratio"] == pytest.approx(float(ratio.detach()), rel=1e-4)
    assert loss.metrics["agreement"] == float((theirs.argmax(-1) == said).sum())


def test_micro_batches_add_up(batch: Batch, make_model: Callable[..., Backbone]) -> None:
    student = make_model(seed=1)
    objective = OnPolicyDistillation(OnPolicySettings(0.5), make_model(seed=2), TOKENS)
    whole = objective(student, batch)
    parts = [objective(student, part) for part in split_rows(batch, 1)]
    assert len(parts) > 1 and sum(part.weight for part in parts) == whole.weight
    assert sum(float(part.total.detach()) for part in parts) == pytest.approx(float(whole.total.detach()), rel=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(batch: Batch, make_model: Callable[..., Backbone]) -> None:
    model = make_model(seed=1)
    for beta in (0.0, 0.3, 1.0):
        loss = OnPolicyDistillation(OnPolicySettings(beta), model, TOKENS)(model, batch)
        assert abs(float(loss.total.detach())) < 1e-4


def test_certain_models_give_finite_numbers() -> None:
    sure = torch.full((2, 20), -300.0)
    sure[:, 3] = 0.0
    other = sure.roll(1, 1)
    for beta in (0.0, 0.5, 1.0):
        assert bool(divergence(sure, other, beta).isfinite().all())
    assert float(divergence(sure, other, 0.5)[0]) == pytest.approx(0.6931, abs=1e-3), "ln 2, its most"


def test_a_beta_outside_its_range_is_refused() -> None:
    with pytest.raises(UserError, match="reverse KL"):
        OnPolicySettings(1.5)
