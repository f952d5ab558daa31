"""What size on how many tokens: the optimum under several laws, for the compute, the device and the use at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minnow.errors import UserError
from minnow.model.accounting import parameter_parts
from minnow.model.presets import PRESETS as SHAPES
from minnow.scaling.downstream import BetaLaw
from minnow.scaling.laws import EPOCH, INFERENCE_FLOPS, TRAIN_FLOPS, Law, T2Law, human, turning_point

_PUBLISHED_TOKENS = {
    "lfm2-350m": 10e12,
    "lfm2.5-350m": 28e12,
    "gemma-3-270m": 6e12,
    "qwen3-0.6b": 36e12,
    "smollm2-135m": 2e12,
}

PRESETS: dict[str, tuple[float, float]] = {
    name: (sum(parameter_parts(SHAPES[name]).values()), tokens) for name, tokens in _PUBLISHED_TOKENS.items()
}
"""Published models: parameters (embedding counted once) and pre-training tokens."""

# The paper's fitted constants are not published. Here the Epoch constants stand for size and tokens, gamma is a guess,
# and G is solved so that the paper's worked example (2.56e19 training and 2e9 question FLOPs: 37M parameters) is the
# optimum. It shows the shape of the trade, and no more.
_EXAMPLE_PARAMS, _EXAMPLE_FLOPS, _EXAMPLE_QUESTION = 37e6, 2.56e19, 2e9


def _illustration() -> T2Law:
    gamma = 0.3
    law = T2Law(
        "T² illustration", EPOCH.E, EPOCH.A, EPOCH.B, 1.0, EPOCH.alpha, EPOCH.beta, gamma,
        EPOCH.params_range, EPOCH.tokens_range,
    )  # fmt: skip
    rest = replace(law, G=0.0).slope(_EXAMPLE_PARAMS, _EXAMPLE_FLOPS, _EXAMPLE_QUESTION)
    samples = _EXAMPLE_QUESTION / (INFERENCE_FLOPS * _EXAMPLE_PARAMS)
    return replace(law, G=-rest / (gamma * samples**-gamma))


T2_ILLUSTRATION = _illustration()


@dataclass(frozen=True)
class Budget:
    """What there is to spend and to respect; None where nothing is said.

    Attributes:
        flops: of training, ``6 N D``.
        dollars_per_flop: price of training compute; only sets the dollar columns and what a token costs.
        inference_tokens: generated and read over the model's life.
        question_flops: per question at test time, ``2 N k`` (one token's forward cost per sample, as the paper counts).
        samples: answers per question that the compute-optimal model would draw, in place of ``question_flops``.
        max_params: the largest model that the device's memory and latency allow.
        target_loss: nats per token to reach at least cost.
        worth: dollars that a loss lower by 0.01 nats is worth.
        unique_tokens: different tokens there are; beyond them they repeat.
    """

    flops: float | None = None
    dollars_per_flop: float = 0.0
    inference_tokens: float = 0.0
    question_flops: float | None = None
    samples: float | None = None
    max_params: float | None = None
    target_loss: float | None = None
    worth: float | None = None
    unique_tokens: float | None = None


@dataclass(frozen=True)
class Choice:
    """One row of the plan.

    Attributes:
        rule: ``chinchilla``, ``inference-aware``, ``t2`` or ``edge-optimal``.
        loss: nats per token by ``law``; None for T², whose laws say something else.
        minus_log_pass: mean over questions of ``-log pass@k``, for a fitted T² law of approach 1.
        pass_rate: share of questions solved, for a T² law of approach 2.
        lifetime_flops: training and inference.
        nats_per_dollar: what the next dollar of tokens would lower the loss by, where there is a price.
        break_even: dollars per 0.01 nats at which stopping here is right, likewise.
        warnings: where the law is used beyond its runs, and limits that bind.
    """

    rule: str
    law: str
    params: float
    tokens: float
    loss: float | None
    training_flops: float
    lifetime_flops: float
    samples: float | None = None
    minus_log_pass: float | None = None
    pass_rate: float | None = None
    dollars: float | None = None
    nats_per_dollar: float | None = None
    break_even: float | None = None
    epochs: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        return self.tokens / self.params

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "warnings": list(self.warnings), "tokens_per_parameter": self.ratio}


def plan(budget: Budget, laws: Sequence[Law], t2: Sequence[T2Law | BetaLaw] = ()) -> list[Choice]:
    """Every rule that the budget gives enough for, under every law.

    Without a target, inference-aware plans reach the loss of the compute-optimal model at the training budget.

    Raises:
        UserError: too little is said to choose anything, a value is not positive, or the target cannot be reached.
    """
    _check(budget)
    choices: list[Choice] = []
    for law in laws:
        if budget.flops is not None or budget.target_loss is not None:
            best = chinchilla(budget, law)
            choices.append(best)
            if budget.inference_tokens:
                choices.append(inference_aware(budget, law, best))
        if budget.max_params is not None and (budget.flops is not None or budget.worth is not None):
            choices.append(edge_optimal(budget, law))
    if budget.flops is not None:
        for trade in t2:
            choices.append(train_to_test(budget, trade, laws[0]))
    if not choices:
        raise UserError(
            "a device limit alone does not say how many tokens pay; add --flops, --gpu-hours, --dollars, "
            "--worth or --target-loss"
        )
    return choices


def chinchilla(budget: Budget, law: Law) -> Choice:
    """Least loss for the training budget, or least training compute for the target."""
    if budget.target_loss is not None:
        params, tokens = law.optimum_for_loss(budget.target_loss)
    else:
        assert budget.flops is not None
        params, tokens = law.optimum(budget.flops)
    if budget.unique_tokens is not None and tokens > budget.unique_tokens:
        params, tokens = _repeated_optimum(budget, law, params)
    if budget.max_params is not None and params > budget.max_params:
        return _choice("chinchilla", law, params, tokens, budget, ("larger than the device allows",))
    return _choice("chinchilla", law, params, tokens, budget)


def _repeated_optimum(budget: Budget, law: Law, around: float) -> tuple[float, float]:
    """The optimum when tokens repeat: no closed form, so the size is searched on a line of compute or of loss."""
    unique = budget.unique_tokens
    assert unique is not None
    if budget.target_loss is not None:
        target = budget.target_loss

        def cost(params: float) -> float:
            return params * _tokens_with_repeats(law, params, target, unique)

    else:
        assert budget.flops is not None
        pairs = budget.flops / TRAIN_FLOPS

        def cost(params: float) -> float:
            return float(law.loss(params, pairs / params, unique))

    params = lowest(cost, around / 1e3, around * 1e4)
    if budget.target_loss is None:
        return params, pairs / params
    tokens = _tokens_with_repeats(law, params, budget.target_loss, unique)
    if not math.isfinite(tokens):
        raise UserError(
            f"a loss of {budget.target_loss:g} cannot be reached on {human(unique)} unique tokens by {law.name}; add "
            "data"
        )
    return params, tokens


def _tokens_with_repeats(law: Law, params: float, loss: float, unique: float) -> float:
    """Tokens, repeats counted at their worth, with which ``params`` reaches ``loss``; infinite where it never does."""

    def above(tokens: float) -> bool:
        return float(law.loss(params, tokens, unique)) > loss

    most = unique * 1e4
    return math.inf if above(most) else turning_point(above, most)


def inference_aware(budget: Budget, law: Law, compute_optimal: Choice) -> Choice:
    """Least ``6 N D + 2 N D_inf`` that reaches the target, or the compute-optimal model's loss (arXiv 2401.00448)."""
    target = budget.target_loss
    if target is None:
        target = float(law.loss(compute_optimal.params, compute_optimal.tokens, budget.unique_tokens))
    unique = budget.unique_tokens

    def tokens_at(params: float) -> float:
        if unique is None:
            return float(law.tokens_for_loss(params, target))
        return _tokens_with_repeats(law, params, target, unique)

    def cost(params: float) -> float:
        return TRAIN_FLOPS * params * tokens_at(params) + INFERENCE_FLOPS * params * budget.inference_tokens

    smallest = (law.A / law.above_floor(target)) ** (1 / law.alpha)  # with endless tokens
    params = lowest(cost, smallest, compute_optimal.params * 1.001)
    warnings: tuple[str, ...] = ()
    if budget.max_params is not None and params > budget.max_params:
        if math.isfinite(tokens_at(budget.max_params)):
            params = budget.max_params
            warnings = ("held to the device's limit",)
        else:
            warnings = (f"no model of the device's {human(budget.max_params)} parameters reaches this loss",)
    return _choice("inference-aware", law, params, tokens_at(params), budget, warnings)


def edge_optimal(budget: Budget, law: Law) -> Choice:
    """The largest model that the device allows, trained until the next token no longer pays.

    A token pays while what it lowers the loss by, at the budget's worth of a nat, exceeds what it costs; and while the
    training budget lasts.
    """
    assert budget.max_params is not None
    params, unique = budget.max_params, budget.unique_tokens
    most = math.inf if budget.flops is None else budget.flops / (TRAIN_FLOPS * params)
    why = "stops at the end of the training budget"
    tokens = most
    if budget.worth is not None:
        price = TRAIN_FLOPS * params * budget.dollars_per_flop
        worth_of_nat = budget.worth / 0.01
        end = turning_point(lambda at: law.gain_per_token(params, at, unique) * worth_of_nat > price, 1e30)
        if end < most:
            tokens, why = end, "the next token no longer pays"
    return _choice("edge-optimal", law, params, tokens, budget, (why,))


def train_to_test(budget: Budget, law: T2Law | BetaLaw, compute: Law) -> Choice:
    """Best answers for a training budget and a budget per question: size, tokens and samples (arXiv 2604.01411)."""
    assert budget.flops is not None
    question = question_flops(budget, compute)
    params, tokens, samples = law.optimum(budget.flops, question)
    warnings: list[str] = []
    if budget.max_params is not None and params > budget.max_params:
        params = budget.max_params
        tokens, samples = budget.flops / (TRAIN_FLOPS * params), question / (INFERENCE_FLOPS * params)
        warnings.append("held to the device's limit")
    if law is T2_ILLUSTRATION:
        warnings.append("illustration: the paper's constants are not published; fit your own with --form t2")
    known = law.law if isinstance(law, BetaLaw) else law
    span = Law("T²", 0, 1, 1, 1, 1, params_range=known.params_range, tokens_range=known.tokens_range)
    outside = span.outside(params, tokens)
    trained = TRAIN_FLOPS * params * tokens
    choice = Choice(
        "t2", law.name, params, tokens, None,
        trained, trained + INFERENCE_FLOPS * params * budget.inference_tokens, samples,
        dollars=trained * budget.dollars_per_flop or None,
        warnings=(*warnings, *([outside] if outside else [])),
    )  # fmt: skip
    if isinstance(law, BetaLaw):
        return replace(choice, pass_rate=float(law.accuracy(params, tokens, samples)))
    if law is T2_ILLUSTRATION:
        return choice  # its optimum is anchored, its level is not
    return replace(choice, minus_log_pass=float(law.loss(params, tokens, samples)))


def question_flops(budget: Budget, law: Law) -> float:
    """FLOPs per question: as given, or those of ``samples`` answers of the compute-optimal model."""
    if budget.question_flops is not None:
        return budget.question_flops
    assert budget.samples is not None and budget.flops is not None
    return INFERENCE_FLOPS * law.optimum(budget.flops)[0] * budget.samples


def describe(params: float, tokens: float, law: Law, budget: Budget, rule: str = "as trained") -> Choice:
    """A given model as a row of the plan."""
    return _choice(rule, law, params, tokens, budget)


def _choice(rule: str, law: Law, params: float, tokens: float, budget: Budget, warnings: Sequence[str] = ()) -> Choice:
    trained = TRAIN_FLOPS * params * tokens
    price = TRAIN_FLOPS * params * budget.dollars_per_flop
    gain = law.gain_per_token(params, tokens, budget.unique_tokens)
    outside = law.outside(params, tokens)
    unique = budget.unique_tokens
    return Choice(
        rule, law.name, params, tokens, float(law.loss(params, tokens, unique)), trained,
        trained + INFERENCE_FLOPS * params * budget.inference_tokens,
        dollars=trained * budget.dollars_per_flop or None,
        nats_per_dollar=gain / price if price else None,
        break_even=0.01 * price / gain if price and gain else None,
        epochs=None if unique is None else max(1.0, tokens / unique),
        warnings=(*warnings, *([outside] if outside else [])),
    )  # fmt: skip


def lowest(cost: Callable[[float], float], low: float, high: float) -> float:
    """Where ``cost``, which falls and then rises and may be infinite at first, is least between two sizes."""
    low, high = math.log(low), math.log(high)
    for points in (400, *8 * (25,)):  # a line over all of it, then ever finer ones around the least
        line = np.linspace(low, high, points)
        best = int(np.argmin([cost(math.exp(at)) for at in line]))
        low, high = line[max(0, best - 1)], line[min(points - 1, best + 1)]
    return math.exp((low + high) / 2)


def largest_model(
    memory_bytes: float | None, bits: float, token_seconds: float | None, bandwidth: float | None
) -> float | None:
    """The most parameters that fit into memory and, read once per token, into the time of a token.

    Args:
        memory_bytes: for the weights.
        bits: per weight in the file.
        token_seconds: allowed per decoded token; needs ``bandwidth``.
        bandwidth: bytes of weights that the device reads per second while decoding.
    """
    limits = []
    if memory_bytes is not None:
        limits.append(8 * memory_bytes / bits)
    if token_seconds is not None:
        if bandwidth is None:
            raise UserError("a latency limit needs the device's speed; add --bandwidth in GB/s or --profile FILE")
        limits.append(8 * token_seconds * bandwidth / bits)
    return min(limits) if limits else None


def measured_bandwidth(profile: Any) -> float:
    """Bytes of weights read per second, from `minnow profile --json`: file size times decoded tokens/s."""
    try:
        rates = [one["bytes"] * depth["tokens_per_second"] for one in profile["files"] for depth in one["decode"][:1]]
    except (KeyError, TypeError) as error:
        raise UserError("that is no profile; write one with `minnow profile FILE.gguf --json`") from error
    if not rates:
        raise UserError("the profile holds no decoding speed; measure again with `minnow profile FILE.gguf --json`")
    return float(max(rates))


def _check(budget: Budget) -> None:
    for name, value in budget.__dict__.items():
        if (
            value is not None
            and name not in ("inference_tokens", "dollars_per_flop")
            and not (value > 0 and math.isfinite(value))
        ):
            raise UserError(f"--{name.replace('_', '-')} is {value:g}; it must be a positive number")
    if budget.inference_tokens < 0:
        raise UserError(f"--inference-tokens is {budget.inference_tokens:g}; it must not be negative")
    if budget.worth is not None and not budget.dollars_per_flop:
        raise UserError("--worth weighs dollars against dollars, so training needs a price; add --gpu-price")
    if budget.flops is None and budget.target_loss is None and budget.max_params is None:
        raise UserError(
            "nothing limits the plan; give --flops, --gpu-hours, --dollars, --target-loss, --memory or --preset"
        )
