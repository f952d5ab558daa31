"""Plans against worked numbers, first-order conditions and each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minnow.errors import UserError
from minnow.scaling.downstream import BetaLaw
from minnow.scaling.laws import EPOCH, HOFFMANN, Law
from minnow.scaling.plan import (
    PRESETS,
    T2_ILLUSTRATION,
    Budget,
    Choice,
    chinchilla,
    describe,
    edge_optimal,
    inference_aware,
    largest_model,
    lowest,
    measured_bandwidth,
    plan,
    question_flops,
)

PRICE = 2.5 / (989e12 * 0.4 * 3600)


def only(choices: list[Choice], rule: str, law: str = "Epoch") -> Choice:
    (found,) = [choice for choice in choices if (choice.rule, choice.law) == (rule, law)]
    return found


@pytest.mark.parametrize(
    ("use", "billions", "ratio"), [(0, 29.4, 19), (1e12, 19.7, 46), (1e13, 11.4, 213), (1e14, 7.5, 1266)]
)
def test_inference_aware_sizes_are_the_worked_ones(use: float, billions: float, ratio: float) -> None:
    """Epoch constants, the loss of the optimum for 1e23 FLOPs (arXiv 2401.00448's objective)."""
    budget = Budget(flops=1e23, inference_tokens=use)
    found = inference_aware(budget, EPOCH, chinchilla(budget, EPOCH))
    assert found.params / 1e9 == pytest.approx(billions, abs=0.08)
    assert found.ratio == pytest.approx(ratio, rel=0.02)
    assert found.loss == pytest.approx(float(EPOCH.loss(*EPOCH.optimum(1e23))), rel=1e-9)
    assert found.lifetime_flops == pytest.approx(6 * found.params * found.tokens + 2 * found.params * use)


def test_more_use_means_a_smaller_model_and_less_compute_over_its_life_than_chinchilla() -> None:
    budget = Budget(target_loss=2.2, inference_tokens=1e13)
    choices = plan(budget, [EPOCH])
    start, aware = only(choices, "chinchilla"), only(choices, "inference-aware")
    assert (start.loss, aware.loss) == pytest.approx((2.2, 2.2), rel=1e-9)
    assert aware.params < start.params
    assert aware.training_flops > start.training_flops
    assert aware.lifetime_flops < start.lifetime_flops


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_what_was_published(name: str) -> None:
    params, tokens = PRESETS[name]
    budget = Budget(flops=6 * params * tokens, max_params=params, dollars_per_flop=PRICE)
    found = only(plan(budget, [HOFFMANN, EPOCH]), "edge-optimal")
    assert (found.params, found.tokens) == pytest.approx((params, tokens), rel=1e-12)
    assert "stops at the end of the training budget" in found.warnings
    # And the worth of a nat that is read off there leads back to the same tokens.
    assert found.break_even is not None
    again = edge_optimal(replace(budget, flops=None, worth=found.break_even), EPOCH)
    assert again.tokens == pytest.approx(tokens, rel=1e-6)


def test_ratios_of_the_presets() -> None:
    ratios = {name: round(tokens / params) for name, (params, tokens) in PRESETS.items()}
    assert ratios["lfm2.5-350m"] == 78_988
    assert ratios == {
        "lfm2-350m": 28_210,
        "lfm2.5-350m": 78_988,
        "gemma-3-270m": 22_380,
        "qwen3-0.6b": 60_398,
        "smollm2-135m": 14_868,
    }


def test_edge_optimal_stops_where_the_next_token_costs_what_it_brings() -> None:
    budget = Budget(max_params=354e6, worth=1000.0, dollars_per_flop=PRICE)
    found = edge_optimal(budget, EPOCH)
    # Closed form: beta B D^-(beta+1) V = 6 N price, V dollars a nat.
    value, cost = 1000.0 / 0.01, 6 * 354e6 * PRICE
    assert found.tokens == pytest.approx((EPOCH.beta * EPOCH.B * value / cost) ** (1 / (EPOCH.beta + 1)), rel=1e-9)
    assert found.break_even == pytest.approx(1000.0, rel=1e-6)
    assert found.nats_per_dollar is not None and found.nats_per_dollar * value == pytest.approx(1.0, rel=1e-6)
    assert found.warnings[0] == "the next token no longer pays"
    # Repeated tokens pay for a shorter time.
    assert edge_optimal(replace(budget, unique_tokens=1e9), EPOCH).tokens < found.tokens


def test_unique_tokens_move_compute_into_size_and_are_counted_as_epochs() -> None:
    budget = Budget(flops=1e21, unique_tokens=2e9)
    plain, scarce = chinchilla(replace(budget, unique_tokens=None), EPOCH), chinchilla(budget, EPOCH)
    assert scarce.epochs == pytest.approx(scarce.tokens / 2e9) and scarce.epochs > 1
    assert scarce.loss is not None and plain.loss is not None and scarce.loss > plain.loss
    for factor in (0.9, 1.1):
        size = scarce.params * factor
        assert float(EPOCH.loss(size, 1e21 / (6 * size), 2e9)) > scarce.loss
    aware = inference_aware(replace(budget, inference_tokens=1e12), EPOCH, scarce)
    assert aware.loss == pytest.approx(scarce.loss, rel=1e-6) and aware.params < scarce.params
    with pytest.raises(UserError, match="cannot be reached on 2M unique tokens by Epoch"):
        chinchilla(Budget(target_loss=2.0, unique_tokens=2e6), EPOCH)


def test_a_device_limit_holds_the_other_rules_too() -> None:
    budget = Budget(flops=1e23, inference_tokens=1e12, max_params=15e9, question_flops=1e12)
    choices = plan(budget, [EPOCH], [T2_ILLUSTRATION])
    assert only(choices, "inference-aware").params == 15e9
    assert "larger than the device allows" in only(choices, "chinchilla").warnings
    tiny = inference_aware(replace(budget, max_params=1e8), EPOCH, chinchilla(budget, EPOCH))
    assert any("reaches this loss" in warning for warning in tiny.warnings)
    held = only(plan(replace(budget, max_params=1e7), [EPOCH], [T2_ILLUSTRATION]), "t2", T2_ILLUSTRATION.name)
    assert held.params <= 1e7 and "held to the device's limit" in held.warnings


def test_the_t2_illustration_has_the_papers_example_as_its_optimum() -> None:
    params, tokens, samples = T2_ILLUSTRATION.optimum(2.56e19, 2e9)
    assert (params, tokens / params, samples) == pytest.approx((37e6, 3117, 27), rel=2e-3)
    choice = only(
        plan(Budget(flops=2.56e19, question_flops=2e9), [EPOCH], [T2_ILLUSTRATION]), "t2", T2_ILLUSTRATION.name
    )
    assert any("the paper's constants are not published" in warning for warning in choice.warnings)
    assert choice.loss is None and choice.minus_log_pass is None
    own = replace(T2_ILLUSTRATION, name="own")
    fitted = only(plan(Budget(flops=2.56e19, question_flops=2e9), [EPOCH], [own]), "t2", "own")
    assert fitted.minus_log_pass == pytest.approx(float(own.loss(params, tokens, samples)))
    assert choice.ratio > 100 * chinchilla(Budget(flops=2.56e19), EPOCH).ratio / 20


def test_samples_set_the_budget_per_question() -> None:
    budget = Budget(flops=1e21, samples=8)
    assert question_flops(budget, EPOCH) == pytest.approx(2 * EPOCH.optimum(1e21)[0] * 8)
    assert question_flops(replace(budget, question_flops=5.0), EPOCH) == 5.0
    law = BetaLaw(EPOCH, 6.0, -2.5, 1.0, -0.2)
    found = only(plan(budget, [EPOCH], [law]), "t2", law.name)
    assert found.loss is None and found.pass_rate is not None and 0 < found.pass_rate < 1
    assert found.samples is not None and 2 * found.params * found.samples == pytest.approx(
        question_flops(budget, EPOCH)
    )


def test_device_limits() -> None:
    assert largest_model(None, 5, None, None) is None
    assert largest_model(250e6, 5.0, None, None) == pytest.approx(400e6)
    assert largest_model(250e6, 5.0, 0.005, 40e9) == pytest.approx(320e6)
    with pytest.raises(UserError, match="add --bandwidth in GB/s or --profile"):
        largest_model(None, 5.0, 0.005, None)
    profile: dict[str, Any] = {"files": [{"bytes": 2e8, "decode": [{"tokens_per_second": 100.0}]}]}
    assert measured_bandwidth(profile) == 2e10
    for wrong in ({}, {"files": [{"bytes": 1}]}, []):
        with pytest.raises(UserError, match="that is no profile"):
            measured_bandwidth(wrong)
    with pytest.raises(UserError, match="holds no decoding speed"):
        measured_bandwidth({"files": []})


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(), "nothing limits the plan"),
        (Budget(max_params=1e8), "a device limit alone does not say how many tokens pay"),
        (Budget(flops=-1.0), "--flops is -1; it must be a positive number"),
        (Budget(flops=1e20, inference_tokens=-1.0), "--inference-tokens is -1"),
        (Budget(max_params=1e8, worth=10.0), "add --gpu-price"),
        (Budget(target_loss=1.0), "a loss of 1 cannot be reached"),
    ],
)
def test_budgets_that_plan_nothing(budget: Budget, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan(budget, [EPOCH])


def test_the_lowest_point_is_found_beside_an_infinite_stretch() -> None:
    assert lowest(lambda x: float("inf") if x < 3 else x + 100 / x, 1.0, 1e4) == pytest.approx(10.0, rel=1e-6)


def test_a_described_model_is_json(tmp_path: Path) -> None:
    row = describe(354_483_968, 28e12, EPOCH, Budget(unique_tokens=7e12)).as_dict()
    assert row["epochs"] == 4 and json.loads(json.dumps(row))["tokens_per_parameter"] == pytest.approx(78_988, abs=1)
    assert isinstance(EPOCH, Law)
