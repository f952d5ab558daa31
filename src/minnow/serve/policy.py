"""When the model on this machine answers and when the one in the cloud does: the policy and its decisions, pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

from minnow.data.table import read_rows
from minnow.errors import UserError
from minnow.files import read_json
from minnow.recipe.mapping import from_mapping
from minnow.recipe.schema import load_yaml
from minnow.serve.bodies import Action
from minnow.serve.probe import load_probe


@dataclass(frozen=True)
class Cloud:
    """Attributes:
    url, model: an OpenAI-compatible server and the name it knows its model by.
    key_variable: environment variable with its key.
    first_token: seconds after which the answer has to have begun.
    stall: seconds between two pieces of it.
    retries: before its first token, out of a budget of one retry for every ten requests.
    failures, pause: after so many in a row it is left alone for so many seconds, then tried with one request.
    megabytes: that may be sent to it as long as the server runs; None: any.
    """

    url: str
    model: str
    key_variable: str = "MINNOW_CLOUD_KEY"
    first_token: float = 10.0
    stall: float = 10.0
    retries: int = 1
    failures: int = 3
    pause: float = 15.0
    megabytes: float | None = None

    def __post_init__(self) -> None:
        if min(self.first_token, self.stall) <= 0 or self.retries < 0 or self.failures < 1 or self.pause < 0:
            raise UserError(
                "first_token and stall of a cloud are above 0 seconds, failures at least 1, retries and pause at least 0"
            )


@dataclass(frozen=True)
class Signal:
    """When a local answer counts as unsure.

    Attributes:
        threshold: the signal below which it does: the least margin among the answer's first ``tokens`` tokens, or with a
            ``probe`` the probability that the answer is good. A token's margin is by how much the log-probability of the
            likeliest one exceeds the next one's.
        probe: a file of ``minnow route fit``, which reads the hidden states of as many tokens as it was fitted on.
        calibration: instead of a threshold, JSON lines with ``signal`` and ``good`` of earlier local answers, from which
            the threshold is set so that at most ``risk`` of all answers are local and bad. A probe brings its own.
        asks: the local model is offered the server's search at once, and says itself that it needs it by calling it.
    """

    threshold: float | None = None
    tokens: int = 32
    probe: Path | None = None
    calibration: Path | None = None
    risk: float = 0.05
    asks: bool = False

    def __post_init__(self) -> None:
        if self.threshold is not None and self.calibration is not None:
            raise UserError("threshold and calibration exclude each other; leave one of them out")
        if self.tokens < 1 or not 0 < self.risk < 1:
            raise UserError(
                f"a signal of {self.tokens} tokens and risk {self.risk} cannot work; use 1 or more, and 0..1"
            )


@dataclass(frozen=True)
class Policy:
    """Attributes:
    personal_data: ``"local"``: texts in which mail addresses, numbers of cards and the like are found stay here.
    offline: never use the cloud.
    least_battery: per cent of charge below which the cloud answers, where it may.
    prefill, decode: tokens per second of the local model until the server has measured its own.
    profile: what ``minnow profile --json`` printed on this device; its first model's speeds take the place of these two.
    """

    cloud: Cloud | None = None
    signal: Signal = field(default_factory=Signal)
    personal_data: Literal["local", "allowed"] = "local"
    offline: bool = False
    least_battery: int | None = None
    prefill: float = 500.0
    decode: float = 50.0
    profile: Path | None = None

    def __post_init__(self) -> None:
        if min(self.prefill, self.decode) <= 0:
            raise UserError(f"prefill {self.prefill} and decode {self.decode} are tokens per second; use more than 0")


@dataclass(frozen=True)
class Facts:
    """What is known of a request when its way is chosen; times in seconds.

    Attributes:
        wanted: the way the client asks for.
        personal: what personal data was found.
        open: whether the cloud is left alone after failures.
        spent: whether the cloud's budget is.
        battery: per cent; None where the machine has none.
        local, cloud: predicted time until the answer is there.
        left: until the deadline.
        searches: whether there is something to search.
    """

    wanted: str = "auto"
    private: bool = False
    personal: str | None = None
    open: bool = False
    spent: bool = False
    battery: int | None = None
    local: float = 0.0
    cloud: float = 0.0
    left: float = 120.0
    searches: bool = False


@dataclass(frozen=True)
class Decision:
    """``action`` and why; ``closed``: why the cloud cannot be used, None where it can."""

    action: Action
    reason: str
    closed: str | None


def closed(policy: Policy, facts: Facts) -> str | None:
    """Why nothing of the request may go to the cloud, None where it may."""
    if policy.cloud is None:
        return "there is no cloud in the policy"
    if facts.private:
        return "the request is private"
    if policy.personal_data == "local" and facts.personal is not None:
        return f"the text holds {facts.personal}"
    if policy.offline:
        return "the policy is offline"
    if facts.spent:
        return "the cloud's budget is spent"
    if facts.open:
        return "the cloud has failed lately"
    if facts.cloud >= facts.left and facts.wanted != "cloud":
        return f"the cloud needs {facts.cloud:.1f} s and {facts.left:.1f} are left"
    return None


def choose(policy: Policy, facts: Facts) -> Decision:
    """The way a request takes first."""
    shut = closed(policy, facts)
    if facts.wanted == "cloud":
        return Decision("cloud", "asked for", None) if shut is None else Decision("local", shut, shut)
    if facts.wanted == "search" and facts.searches:
        return Decision("search", "asked for", shut)
    if facts.wanted == "local":
        return Decision("local", "asked for", "asked to stay local")
    if shut is not None:
        return Decision("local", shut, shut)
    if facts.battery is not None and policy.least_battery is not None and facts.battery < policy.least_battery:
        return Decision("cloud", f"the battery is at {facts.battery}%", None)
    if facts.local > facts.left:
        return Decision("cloud", f"here it would take {facts.local:.1f} s and {facts.left:.1f} are left", None)
    return Decision("local", "the local model is tried first", None)


def reconsider(
    policy: Policy, facts: Facts, decision: Decision, signal: float | None, threshold: float | None
) -> Decision:
    """The way a request goes on after the beginning of a local answer, which looks as good as ``signal`` says."""
    if threshold is None or signal is None:
        return decision
    if signal >= threshold:
        return Decision(decision.action, f"the local answer is sure ({signal:.2f})", decision.closed)
    unsure = f"the local answer is unsure ({signal:.2f} < {threshold:.2f})"
    if decision.action == "local" and facts.searches and facts.wanted == "auto":
        return Decision("search", unsure, decision.closed)
    shut = decision.closed or closed(policy, facts)
    return Decision("cloud", unsure, None) if shut is None else Decision(decision.action, f"{unsure}, but {shut}", shut)


def pace_of(policy: Policy) -> tuple[float, float]:
    """Tokens a second that the local model reads and writes, as far as the policy knows.

    Raises:
        UserError: its profile is none.
    """
    if policy.profile is None:
        return policy.prefill, policy.decode
    try:
        first = read_json(policy.profile)["files"][0]
        prefill, decode = (
            median(float(each["tokens_per_second"]) for each in first[part]) for part in ("prefill", "decode")
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{policy.profile} is no profile; write one with 'minnow profile MODEL --json'") from error
    return prefill, decode


def conformal_threshold(signals: Sequence[float], good: Sequence[bool], risk: float) -> float:
    """The lowest threshold at which the expected share of requests that get a bad local answer is at most ``risk``.

    Conformal risk control (Angelopoulos et al. 2022, arXiv:2208.02814): over ``n`` earlier answers, exchangeable with those
    to come, the empirical share ``R`` satisfies ``(n R + 1) / (n + 1) <= risk``. Infinity where no threshold does.
    """
    rows = sorted(zip(signals, good, strict=True), reverse=True)
    allowed = risk * (len(rows) + 1) - 1
    bad, threshold = 0, float("inf")
    if allowed < 0:
        return threshold
    for place, (signal, fine) in enumerate(rows):
        bad += not fine
        if bad > allowed:
            return threshold
        if place + 1 == len(rows) or rows[place + 1][0] < signal:
            threshold = signal
    return float("-inf")


def threshold_of(signal: Signal) -> float | None:
    """The threshold that a policy sets, worked out from its calibration where it names one.

    Raises:
        UserError: a row of the calibration lacks its fields, or the probe is none.
    """
    if signal.threshold is not None:
        return signal.threshold
    signals, good = [], []
    if signal.calibration is None:
        if signal.probe is None:
            return None
        for found, fine in load_probe(signal.probe).calibration:
            signals.append(found)
            good.append(fine)
        return conformal_threshold(signals, good, signal.risk)
    for row in read_rows(signal.calibration):
        try:
            signals.append(float(row.values["signal"]))
            good.append(bool(row.values["good"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{row.place} needs a number 'signal' and a truth value 'good'") from error
    return conformal_threshold(signals, good, signal.risk)


def load_policy(path: Path) -> Policy:
    """Read a policy from YAML.

    Raises:
        UserError: no such file, or a key or value that is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a policy ({error}); name a YAML file") from error
    document = load_yaml(text, str(path)) or {}
    try:
        return from_mapping(Policy, document)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
