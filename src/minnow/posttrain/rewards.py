"""What an answer earns in RL: plain functions by name, weighted."""

from __future__ import annotations

import functools
import math
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minnow.errors import UserError
from minnow.evaluate.measure import score
from minnow.rollout.records import Rollout
from minnow.tasks import Example
from minnow.tasks.given import expected

Reward = Callable[[list[dict[str, Any]], str, list[int], Mapping[str, Any]], float]
"""``(prompt, completion, ids, columns) -> number``: messages, text, token ids, and all else that is known.

``columns`` holds ``example``, ``rollout``, the example's ``task`` and ``answer``, and the rollout's ``finish_reason`` and
``loop``.
"""


def verifier(prompt: list[dict[str, Any]], completion: str, ids: list[int], columns: Mapping[str, Any]) -> float:
    """Mean of the verifier's value and verdict; an answer that loops or does not end earns nothing.

    The value alone hardly tells a good long answer from one with a single fault.
    """
    found = score(columns["example"], columns["rollout"])
    return (found.value + found.correct) / 2


REWARDS: dict[str, Reward] = {"verifier": verifier}


@functools.lru_cache(maxsize=64)
def find_reward(name: str) -> Reward:
    """A reward by its name, or by ``FILE.py:FUNCTION``.

    Raises:
        UserError: there is no such reward, or the file cannot be run.
    """
    if name in REWARDS:
        return REWARDS[name]
    file, _, function = name.rpartition(":")
    if not file.endswith(".py") or not Path(file).is_file():
        raise UserError(f"there is no reward {name!r}; use {', '.join(REWARDS)} or FILE.py:FUNCTION")
    try:
        found = runpy.run_path(file).get(function)
    except Exception as error:  # the file is the user's
        raise UserError(f"{file} cannot be run ({type(error).__name__}: {error}); correct it") from error
    if not callable(found):
        raise UserError(f"{file} has no function {function!r}; name one that it defines")
    return found


def earned(example: Example, rollout: Rollout, rewards: Mapping[str, float]) -> float:
    """The weighted sum of what an answer earns.

    Raises:
        UserError: a reward raised an error or is no number.
    """
    columns = {
        "example": example,
        "rollout": rollout,
        "task": example.task,
        "answer": expected(example),
        "finish_reason": rollout.finish_reason,
        "loop": rollout.loop,
    }
    total = 0.0
    for name, weight in rewards.items():
        try:
            value = float(find_reward(name)(example.messages, rollout.text, rollout.token_ids, columns))
        except UserError:
            raise
        except Exception as error:  # the function may be the user's
            raise UserError(f"reward {name} failed ({type(error).__name__}: {error}); correct it") from error
        if not math.isfinite(value):
            raise UserError(f"reward {name} is no finite number for an answer to {example.id!r}; correct it")
        total += weight * value
    return total
