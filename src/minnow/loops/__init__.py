"""Doom loops: one verdict for data filters, preference pairs, rewards, measurement and serving.

Over token ids (:func:`find_loop`, :func:`find_loops`, :class:`LoopWatch`) and over text (:func:`find_text_loop`,
:func:`find_text_loops`, :class:`TextWatch`); why an output ran to its limit (:func:`diagnose`); published rules for
comparison (:data:`RULES`, :class:`RuleWatch`); the interval every loop rate is reported with (:class:`Rate`) and two
verdicts on the same things (:class:`Paired`). numpy, and C where there is a compiler.
"""

from minnow.loops.cause import CHARACTERS_A_TOKEN, Diagnosis, diagnose
from minnow.loops.find import Loop, find_loop, find_loops, find_text_loop, find_text_loops
from minnow.loops.paired import Paired
from minnow.loops.penalties import Dry, LzPenalty, Penalty, breaker_tokens
from minnow.loops.rate import Rate
from minnow.loops.rules import (
    RULES,
    TextLoop,
    repeated_ngram_share,
    rule_watch,
    trl_ngram_penalty,
    vllm_tail,
)
from minnow.loops.symbols import Lexicon
from minnow.loops.watch import CUT_AFTER, LoopWatch, TextWatch, has_lasted

__all__ = [
    "CHARACTERS_A_TOKEN",
    "CUT_AFTER",
    "RULES",
    "Diagnosis",
    "Dry",
    "Lexicon",
    "Loop",
    "LoopWatch",
    "LzPenalty",
    "Paired",
    "Penalty",
    "Rate",
    "TextLoop",
    "TextWatch",
    "breaker_tokens",
    "diagnose",
    "find_loop",
    "find_loops",
    "find_text_loop",
    "find_text_loops",
    "has_lasted",
    "repeated_ngram_share",
    "rule_watch",
    "trl_ngram_penalty",
    "vllm_tail",
]
