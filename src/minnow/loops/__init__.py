"""Doom loops: one verdict for data filters, preference pairs, rewards, measurement and serving.

Pure functions over token ids (:func:`find_loop`, :class:`LoopWatch`) and over text (:data:`RULES`, published
rules for comparison), and the interval every loop rate is reported with (:class:`Rate`). numpy only.
"""

from minnow.loops.find import Loop, find_loop
from minnow.loops.rate import Rate
from minnow.loops.rules import RULES, TextLoop, repeated_ngram_share, trl_ngram_penalty, vllm_tail
from minnow.loops.watch import LoopWatch

__all__ = [
    "RULES",
    "Loop",
    "LoopWatch",
    "Rate",
    "TextLoop",
    "find_loop",
    "repeated_ngram_share",
    "trl_ngram_penalty",
    "vllm_tail",
]
