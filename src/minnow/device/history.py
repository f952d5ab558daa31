"""Earlier profiles of a model on this machine: whether a machine keeps its speed shows only over hours."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minnow.device.journal import Journal
from minnow.progress import say

APART = 0.05  # of the shorter time; more is no longer the same speed
_KEPT = 10  # profiles of one model
_SAME = ("file", "type", "bytes", "parameters", "engine", "threads", "runtime", "runtime_build")


def compare_with_earlier(profile: dict[str, Any], file: Path) -> None:
    """Mark models of :func:`minnow.device.profile.profile` noisy whose times are more than 5% from an earlier profile of
    the same model, runtime and threads on this machine, and remember them in ``file``.

    Earlier profiles that were noisy in themselves do not count, and of each model the last ten do. Where ``file`` cannot
    be read or written a line says so.
    """
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    try:
        journal = Journal(file)
        for entry in profile["files"]:
            asked = ("profile", profile["machine"]["cpu"], *(entry[name] for name in _SAME))
            earlier = journal.known(*asked) or []
            found: dict[str, Any] = {"at": now, "noise": list(entry["noise"]), "times": _times(entry)}
            entry["noise"] += _apart(found["times"], [one for one in earlier if not one["noise"]])
            entry["noisy"] = bool(entry["noise"])
            journal.keep([*earlier, found][-_KEPT:], *asked)
    except OSError as error:
        say(f"{file} cannot be used ({error.strerror}), so earlier profiles are neither compared with nor remembered")


def _times(entry: dict[str, Any]) -> dict[str, float]:
    """Milliseconds by what they are of."""
    prefill = {f"the first token after {each['tokens']}": each["ttft_ms"] for each in entry["prefill"]}
    decode = {f"a token at depth {each['depth']}": 1e3 / each["tokens_per_second"] for each in entry["decode"]}
    return prefill | decode


def _apart(times: dict[str, float], earlier: list[dict[str, Any]]) -> list[str]:
    """The largest of the differences that are too large."""
    far = [
        (abs(math.log(ms / one["times"][what])), what, ms, one["times"][what], one["at"])
        for one in earlier
        for what, ms in times.items()
        if what in one["times"]
    ]
    worst = max(far, default=None)
    if worst is None or worst[0] <= math.log1p(APART):
        return []
    _, what, ms, before, at = worst
    return [f"{what} took {ms:.1f} ms, and {before:.1f} ms on {at}"]
