from __future__ import annotations

import pytest

from minnow import progress
from minnow.progress import Meter, curve, duration, quantity, say, track


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (90_000, "1 d 1 h")],
)
def test_durations_have_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (512, "512"), (3.4219, "3.42"), (42.19, "42.2"), (12_345, "12.3k"), (1.2e6, "1.20M"), (3.4e9, "3.40G")],
)
def test_quantities_are_short(value: float, words: str) -> None:
    assert quantity(value) == words


def test_the_rate_is_that_of_the_window_and_not_of_the_slow_start() -> None:
    now = [0.0]
    meter = Meter(window=10.0, clock=lambda: now[0])
    assert meter.rate() is None and meter.left(100) is None
    for _ in range(10):
        now[0] += 10.0
        meter.add(1)
    for _ in range(100):
        now[0] += 0.5
        meter.add(1)
    assert meter.rate() == pytest.approx(2.0, rel=0.02)
    assert meter.left(310) == pytest.approx(100.0, rel=0.02)


def test_work_done_before_does_not_count_into_the_rate() -> None:
    now = [0.0]
    meter = Meter(done=1000, clock=lambda: now[0])
    now[0] = 5.0
    meter.add(10)
    assert meter.rate() == pytest.approx(2.0) and meter.left(1030) == pytest.approx(10.0)


def test_off_a_terminal_it_is_lines_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with track(3, "pretrain", "steps") as bar:
        bar.note("loss 2.31")
        bar.advance()
        bar.advance(2)
    say("done")
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and len(lines) == 4
    assert lines[0].startswith("pretrain: 1/3 steps, ") and lines[0].endswith("loss 2.31")
    assert lines[2].startswith("pretrain: 3/3 steps, ") and lines[2].endswith(" in 0 s") and lines[3] == "done"


def test_on_a_terminal_nested_work_shares_one_display(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_on_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with track(2, "outer", "stages") as outer:
        with track(None, "inner", "rows") as inner:
            inner.advance(7)
            say("a line above the bars")
        outer.advance(2)
    captured = capsys.readouterr()
    assert captured.out == "" and "a line above the bars" in captured.err
    assert "outer" in captured.err and "7 rows" in captured.err and "2/2 stages" in captured.err


def test_shown_numbers_are_a_table_on_a_terminal_and_words_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> str:
        with track(3, "pretrain", "steps") as bar:
            for loss in (3.0, 2.0, 1.0):
                bar.show({"tokens/s": "25.8k", "memory": f"{loss} GiB"}, loss)
                bar.advance()
        return capsys.readouterr().err

    assert run().strip().endswith("tokens/s 25.8k, memory 1.0 GiB in 0 s")
    monkeypatch.setattr(progress, "_on_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    drawn = run()
    assert "█▅▁" in drawn and "1.0 GiB" in drawn and "steps/s" in drawn


def test_a_curve_spans_its_values() -> None:
    assert curve([4.0, 2.0, 0.5]) == "█▄▁" and curve([1.0, 1.0]) == "▁▁" and curve([]) == ""
