"""Gates, decisions and the threshold, as pure functions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minnow.errors import UserError
from minnow.serve.answering import Finished
from minnow.serve.bodies import Ask
from minnow.serve.links import Breaker, RetryBudget, Speed, battery
from minnow.serve.personal import personal_data
from minnow.serve.policy import (
    Cloud,
    Facts,
    Policy,
    Signal,
    choose,
    conformal_threshold,
    load_policy,
    reconsider,
    threshold_of,
)
from minnow.serve.router import Router
from minnow.serve.source import Prompt

OPEN = Policy(cloud=Cloud("http://cloud/v1", "big"), signal=Signal(threshold=-0.5), least_battery=20)


@pytest.mark.parametrize(
    ("facts", "action", "reason"),
    [
        (Facts(), "local", "tried first"),
        (Facts(wanted="cloud"), "cloud", "asked for"),
        (Facts(wanted="local"), "local", "asked for"),
        (Facts(wanted="search", searches=True), "search", "asked for"),
        (Facts(wanted="cloud", private=True), "local", "private"),
        (Facts(wanted="cloud", personal="an IBAN"), "local", "an IBAN"),
        (Facts(wanted="cloud", open=True), "local", "failed lately"),
        (Facts(wanted="cloud", spent=True), "local", "budget"),
        (Facts(local=9, left=5, cloud=2), "cloud", "would take 9.0 s"),
        (Facts(local=9, left=5, cloud=7), "local", "the cloud needs 7.0 s"),
        (Facts(battery=10), "cloud", "battery"),
        (Facts(battery=50), "local", "tried first"),
    ],
)
def test_the_first_way(facts: Facts, action: str, reason: str) -> None:
    decision = choose(OPEN, facts)
    assert decision.action == action and reason in decision.reason


FACTS = st.builds(
    Facts,
    st.sampled_from(["auto", "local", "search", "cloud"]),
    st.booleans(),
    st.none() | st.just("an IBAN"),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(0, 100),
    st.floats(0, 300),
    st.floats(0, 300),
    st.floats(0, 300),
    st.booleans(),
)


@given(FACTS, st.none() | st.floats(-9, 0))
def test_nothing_private_personal_or_asked_to_stay_ever_goes(facts: Facts, signal: float | None) -> None:
    first = choose(OPEN, facts)
    last = reconsider(OPEN, facts, first, signal, -0.5)
    if facts.private or facts.personal or facts.spent or facts.open or facts.wanted == "local":
        assert "cloud" not in (first.action, last.action)
    offline = Policy(cloud=OPEN.cloud, offline=True)
    assert choose(offline, facts).action != "cloud"


def test_an_unsure_answer_searches_first_then_asks_the_cloud() -> None:
    first = choose(OPEN, Facts())
    assert reconsider(OPEN, Facts(), first, -0.2, -0.5).action == "local"
    assert reconsider(OPEN, Facts(), first, -0.9, -0.5).action == "cloud"
    assert reconsider(OPEN, Facts(searches=True), first, -0.9, -0.5).action == "search"
    late = reconsider(OPEN, Facts(left=1, cloud=3), first, -0.9, -0.5)
    assert late.action == "local" and "unsure" in late.reason and "needs 3.0 s" in late.reason


def test_the_conformal_threshold_bounds_the_bad_answers_that_are_kept() -> None:
    random = np.random.default_rng(0)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        good = random.random(n) < 0.6
        return random.normal(np.where(good, -0.3, -0.8), 0.3), good

    shares = []
    for _ in range(300):
        threshold = conformal_threshold(*(each.tolist() for each in draw(200)), risk=0.1)
        signals, good = draw(2000)
        shares.append(np.mean((signals >= threshold) & ~good))
    assert 0.085 < np.mean(shares) <= 0.1
    assert conformal_threshold([-1.0] * 5, [True] * 5, 0.1) == float("inf")  # too few to promise anything
    assert conformal_threshold([-1.0] * 50, [True] * 50, 0.1) == float("-inf")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to anna.b@example.org today", "a mail address"),
        ("my card is 4111 1111 1111 1111", "a card number"),
        ("order number 4111 1111 1111 1112", None),
        ("pay DE89 3704 0044 0532 0130 00 please", "an IBAN"),
        ("SSN 123-45-6789", "a social security number"),
        ("call +49 30 901820 or", "a phone number"),
        ("call (212) 555-0147", "a phone number"),
        ("call 212-555-0147.", "a phone number"),
        ("call 1.212.555.0147", "a phone number"),
        ("part 212-555-01479, range 100-200-3000", None),
        ("The road is 268 miles long, built 1611, costs 3.50 and 12-14 days.", None),
    ],
)
def test_personal_data(text: str, kind: str | None) -> None:
    assert personal_data(text) == kind


def test_a_breaker_opens_probes_and_closes() -> None:
    now = [0.0]
    breaker = Breaker(2, 10.0, lambda: now[0])
    breaker.failed()
    assert not breaker.open
    breaker.failed()
    assert breaker.open
    now[0] = 11.0
    assert not breaker.open
    breaker.start()
    assert breaker.open  # one probe at a time
    breaker.failed()
    assert breaker.open
    now[0] = 22.0
    breaker.start()
    breaker.worked()
    assert not breaker.open


def test_retries_are_a_tenth_of_requests() -> None:
    budget, taken = RetryBudget(), 0
    for _ in range(200):
        budget.request()
        taken += budget.take()
    assert 18 <= taken <= 22


def test_speed_predicts_what_it_has_seen(tmp_path: Path) -> None:
    speed = Speed(1.0, 10.0)
    for _ in range(60):
        speed.note(0.2, 1.2, 51)
    assert speed.seconds(None) == pytest.approx(0.2 + 51 / 50, rel=0.02)
    assert speed.seconds(5) == pytest.approx(0.3, rel=0.02)
    assert battery(tmp_path / "none") is None
    for name, text in (("type", "Battery"), ("status", "Discharging"), ("capacity", "15")):
        (tmp_path / "BAT0").mkdir(exist_ok=True)
        (tmp_path / "BAT0" / name).write_text(text)
    assert battery(tmp_path) == 15


def test_a_policy_is_read_strictly(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("cloud: {url: http://x/v1, model: big}\nsignal: {threshold: -0.4}\n")
    assert load_policy(file).signal.threshold == -0.4
    log = tmp_path / "log.jsonl"
    log.write_text("".join(f'{{"signal": {-i / 100}, "good": true}}\n' for i in range(60)))
    file.write_text(f"signal: {{calibration: {log}, risk: 0.1}}\n")
    assert threshold_of(load_policy(file).signal) == float("-inf")
    file.write_text("cloud: {url: http://x/v1, modell: big}\n")
    with pytest.raises(UserError, match="did you mean model"):
        load_policy(file)
    for wrong in ("prefill: 0", "cloud: {url: http://x/v1, model: big, failures: 0}"):
        file.write_text(wrong)
        with pytest.raises(UserError, match="policy.yaml"):
            load_policy(file)


def test_the_local_time_is_that_of_what_has_to_be_read_and_written(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    speeds = {"prefill": [{"tokens_per_second": 100.0}] * 2, "decode": [{"tokens_per_second": 10.0}]}
    profile.write_text(json.dumps({"files": [speeds, {}]}))
    router = Router(Policy(profile=profile), None, slots=2)
    ask = Ask({}, ())

    def local(ids: tuple[int, ...], answer: int = 1) -> float:
        return router.facts(ask, Prompt(ask, answer, ids), 60.0).local

    talk = tuple(range(300))
    assert local(talk) == pytest.approx(0.1 + 3.0 + 0.1) and local((), 20) == pytest.approx(0.1 + 2.0)
    for _ in range(60):  # twice as fast as the profile says, and half a second before anything
        timings = {"ttft_ms": 2000.0, "total_ms": 3000.0, "prompt_ms": 1500.0, "prompt_n": 300}
        router.note(Prompt(ask, 9, talk), Finished("stop", (), "", {"completion_tokens": 21}, timings))
    assert local((7, *talk)) == pytest.approx(0.5 + 301 / 200 + 1 / 20, rel=1e-3)
    assert local((*talk, 1, 2)) == pytest.approx(0.5 + 2 / 200 + 1 / 20, rel=1e-3)  # the rest has been read
    profile.write_text("{}")
    with pytest.raises(UserError, match="no profile"):
        Router(Policy(profile=profile), None)
