"""Why an output ran to its limit: it loops, the answer is long, the budget too small, or a template or end token wrong.

Counting every output that was cut as a loop, or none of them, gives two wrong rates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from minnow.loops.find import Loop, find_loop, find_text_loop
from minnow.loops.symbols import Lexicon
from minnow.loops.tools import without_tools

LOOP, LONG_ANSWER, BUDGET, TEMPLATE = "loop", "long answer", "budget", "template"

SMALL_BUDGET = 1024
"""Tokens below which an answer that was cut without a loop says more about the budget than about the answer."""

CHARACTERS_A_TOKEN = 4
"""About, where only text is at hand."""

ENDED = {"stop", "eos", "eos_token", "end_turn", "stop_sequence", "tool_calls", "function_call"}
CUT = {"length", "max_tokens", "max_length", "model_length"}
"""Servers' words for an answer that ended by itself, and for one that was cut at its budget."""

# What ends a turn or begins one in the common chat formats; in an answer's text it was meant to be the end.
_TURN = re.compile(
    r"<\|im_(?:start|end)\|>|<\|e(?:ot_id|nd_of_text|ndoftext|nd|om_id)\|>|</s>|<(?:start|end)_of_turn>|<eos>|\[/?INST\]"
    r"|<\|(?:user|assistant|system)\|>|<\|start_header_id\|>|<｜end▁of▁sentence｜>|<\|(?:return|turn_end|END_OF_TURN_TOKEN)\|>"
    r"|^#{2,3} ?(?:Instruction|Response|Human|Assistant|User):?$",
    re.MULTILINE,
)
_ASKED = re.compile(r"^(?:Human|User|Question|Q): ", re.MULTILINE)
_ANSWERED = re.compile(r"^(?:Assistant|AI|Answer|A): ", re.MULTILINE)
_NOTHING = re.compile(r"\ufffd|<unk>|<pad>|<\|(?:pad|reserved)[^|>]*\|>|\x00")


def debris(text: str) -> str | None:
    """The first thing in a text that no writer meant: a mark of a chat template, or a character that was not read."""
    found = _TURN.search(text) or _NOTHING.search(text)
    return None if found is None else found[0]


@dataclass(frozen=True)
class Diagnosis:
    """``loop``: the loop the output ends in, if any. ``cause``: of an output that did not end by itself, one of "loop",
    "long answer", "budget" and "template" (a loop through wrong turns is "template"); else None."""

    loop: Loop | None
    cause: str | None


def diagnose(
    output: str | Sequence[int] | NDArray[Any],
    finish_reason: str | None = None,
    max_tokens: int | None = None,
    lexicon: Lexicon | None = None,
) -> Diagnosis:
    """The verdict on one output and why it was cut.

    Args:
        output: its text, or its token ids ([n], with the end token where there is one).
        finish_reason: as servers give it. ``"stop"`` and its like: it ended by itself and is no loop, whatever it
            repeated. ``"length"``: it was cut. None: not known, and only loops and wrong turns have a cause.
        max_tokens: the budget; by default the output's own length is taken for it.
    """
    if finish_reason in ENDED:
        return Diagnosis(None, None)
    loop: Loop | None
    if isinstance(output, str):
        loop = find_text_loop(output)
        if wrong_turns(output) or (finish_reason in CUT and not output.strip()):
            return Diagnosis(loop, TEMPLATE)
        unfinished_thought = output.rfind("<think>") > output.rfind("</think>")
        size = len(output) // CHARACTERS_A_TOKEN
    else:
        loop = find_loop(output, lexicon)
        unfinished_thought, size = False, len(output)
    if loop is not None:
        return Diagnosis(loop, LOOP)
    if finish_reason not in CUT:
        return Diagnosis(None, None)
    small = (max_tokens if max_tokens is not None else size) < SMALL_BUDGET
    return Diagnosis(None, BUDGET if small or unfinished_thought else LONG_ANSWER)


def wrong_turns(text: str) -> bool:
    """The text goes on past the end of a turn, plays both sides, or is made of what is no text."""
    plain = without_tools(text)
    turn = _TURN.search(plain)
    if turn is not None and (turn.start() == 0 or plain[turn.end() :].strip()):
        return True
    if len(_ASKED.findall(plain)) >= 2 and len(_ANSWERED.findall(plain)) >= 2:
        return True
    return sum(match.end() - match.start() for match in _NOTHING.finditer(plain)) * 2 > len(plain) > 0
