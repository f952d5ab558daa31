"""The laws' formulas and optima against the published formula and worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minnow.errors import UserError
from minnow.scaling.laws import EPOCH, HOFFMANN, Law, Repeats, T2Law, human, worth_of_repeats

PARAMS, TOKENS = 354_483_968, 28e12
FLOPS = 6 * PARAMS * TOKENS


@pytest.mark.parametrize("law", [HOFFMANN, EPOCH], ids=lambda law: law.name)
@pytest.mark.parametrize("flops", [1e18, 5.76e23, 1e26])
def test_the_optimum_is_the_published_formula(law: Law, flops: float) -> None:
    params, tokens = law.optimum(flops)
    factor = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    assert params == pytest.approx(factor * (flops / 6) ** (law.beta / (law.alpha + law.beta)), rel=1e-9)
    assert tokens == pytest.approx(flops / (6 * params), rel=1e-9)
    # No other size does better on the same compute.
    others = params * np.array([0.5, 0.99, 1.01, 2.0])
    assert (law.loss(others, flops / (6 * others)) > law.loss(params, tokens)).all()


def test_the_compute_of_350m_on_28t_would_pay_for_22_6b_on_0_44t() -> None:
    params, tokens = EPOCH.optimum(FLOPS)
    assert f"{FLOPS:.3g}" == "5.96e+22"
    assert f"{params / 1e9:.1f} {tokens / 1e12:.2f} {tokens / params:.1f}" == "22.6 0.44 19.4"
    assert f"{EPOCH.loss(params, tokens):.2f}" == "2.05"


@pytest.mark.parametrize(("tokens", "loss"), [(7e9, 2.847), (1e12, 2.412), (10e12, 2.364), (28e12, 2.352)])
def test_losses_of_a_354m_model(tokens: float, loss: float) -> None:
    assert float(EPOCH.loss(PARAMS, tokens)) == pytest.approx(loss, abs=5e-4)


def test_rounding_hoffmanns_exponents_moves_the_optimum_from_48_to_74_tokens_per_parameter() -> None:
    rounded = Law("rounded", 1.69, 406.4, 410.7, 0.34, 0.28)
    ratios = [law.optimum(FLOPS)[1] / law.optimum(FLOPS)[0] for law in (HOFFMANN, rounded)]
    assert [round(ratio) for ratio in ratios] == [48, 74]


@given(st.floats(1.9, 3.5))
def test_the_optimum_for_a_loss_is_the_optimum_for_its_compute(loss: float) -> None:
    params, tokens = EPOCH.optimum_for_loss(loss)
    assert float(EPOCH.loss(params, tokens)) == pytest.approx(loss, rel=1e-9)
    assert EPOCH.optimum(6 * params * tokens)[0] == pytest.approx(params, rel=1e-9)
    assert float(EPOCH.params_for(tokens)) == pytest.approx(params, rel=1e-9)


def test_tokens_for_a_loss_and_a_floor_that_nothing_reaches() -> None:
    tokens = EPOCH.tokens_for_loss([PARAMS, 1e6], 2.4)
    assert float(EPOCH.loss(PARAMS, tokens[0])) == pytest.approx(2.4, rel=1e-12)
    assert tokens[1] == np.inf
    with pytest.raises(UserError, match="cannot be reached: Epoch puts the floor E at 1.817"):
        EPOCH.tokens_for_loss(PARAMS, 1.8)


@pytest.mark.parametrize("unique", [None, 1e10])
def test_the_gain_of_a_token_is_the_slope_of_the_loss(unique: float | None) -> None:
    tokens, step = 4e10, 4e5
    fall = float(EPOCH.loss(1e8, tokens - step, unique) - EPOCH.loss(1e8, tokens + step, unique))
    assert EPOCH.gain_per_token(1e8, tokens, unique) == pytest.approx(fall / (2 * step), rel=1e-5)


def test_repeated_tokens_are_worth_the_papers_formula() -> None:
    """Four epochs cost little, a hundred are worth no more than R*_D repetitions ever are (arXiv 2305.16264)."""
    law = Law("Muennighoff", 1.87, 521, 1488, 0.353, 0.353, repeats=Repeats())
    unique = 1e9
    worth = worth_of_repeats(np.array([1e9, 4e9, 1e12]), np.array(unique), Repeats().tokens) / unique
    expected = [1 + 15.387756 * (1 - np.exp(-r / 15.387756)) for r in (0, 3, 999)]
    np.testing.assert_allclose(worth, expected, rtol=1e-12)
    assert worth[1] > 3.7 and worth[2] < 16.4
    # A model larger than the unique tokens feed gains less from its size, too.
    fed = float(law.params_for(unique))
    n, d = fed * 10, 1e9
    excess = fed * (1 + 5.309743 * (1 - np.exp(-9 / 5.309743)))
    assert float(law.loss(n, d, unique)) == pytest.approx(1.87 + 521 * excess**-0.353 + 1488 * d**-0.353, rel=1e-12)
    assert float(law.loss(fed, d, unique)) == pytest.approx(float(law.loss(fed, d)), rel=1e-12)


def test_the_t2_optimum_meets_its_first_order_condition_and_beats_its_neighbours() -> None:
    law = T2Law("t2", 0.5, 60, 400, 1.5, 0.3, 0.35, 0.4)
    flops, question = 2.56e19, 2e9
    params, tokens, samples = law.optimum(flops, question)
    assert (6 * params * tokens, 2 * params * samples) == pytest.approx((flops, question), rel=1e-9)
    left = law.alpha * law.A * params**-law.alpha
    right = law.beta * law.B * (6 / flops) ** law.beta * params**law.beta
    right += law.gamma * law.G * (2 / question) ** law.gamma * params**law.gamma
    assert left == pytest.approx(right, rel=1e-9)
    others = params * np.array([0.9, 1.1])
    assert (law.loss(others, flops / (6 * others), question / (2 * others)) > law.loss(params, tokens, samples)).all()


def test_t2_keeps_one_sample() -> None:
    law = T2Law("t2", 0.5, 60, 400, 1e-9, 0.3, 0.35, 0.4)
    params, _, samples = law.optimum(1e22, 2e8)
    assert (params, samples) == pytest.approx((1e8, 1.0), rel=1e-9)
    with pytest.raises(UserError, match="do not pay for one token"):
        law.optimum(1e22, 1.0)


def test_a_law_says_when_it_is_used_outside_its_runs() -> None:
    assert EPOCH.outside(1e9, 2e10) is None
    said = EPOCH.outside(PARAMS, TOKENS)
    assert said == "Epoch is used outside its runs: 28T tokens against 245M to 318B"


@pytest.mark.parametrize(
    ("value", "text"),
    [(354_483_968, "354M"), (28e12, "28T"), (1.5e9, "1.5B"), (999_999, "1M"), (42, "42"), (3e16, "30,000T")],
)
def test_counts_are_written_in_the_units_of_the_field(value: float, text: str) -> None:
    assert human(value) == text
