"""How well a model answers by searching a made-up world, beside two controls."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from minnow.agent.index import SearchIndex
from minnow.agent.loop import Limits, Trace, run_agent
from minnow.agent.tools import search_tool
from minnow.data.tokenizer import Tokenizer
from minnow.loops import Rate
from minnow.rollout import Engine, Sampling
from minnow.tasks import format_hits
from minnow.tasks.made_world import KINDS, ORDER, Given, MadeWorld, Posed
from minnow.tasks.tools import score_answer

WAYS = ("closed book", "search", "oracle")
_ABSTAINED = re.compile(
    r"^$|\b(?:not known|unknown|no (?:page|answer|information)|not found|do not know|cannot)\b", re.IGNORECASE
)


def abstained(answer: str) -> bool:
    """Whether an answer says that there is none."""
    return _ABSTAINED.search(answer.strip()) is not None


def right(gold: str | None, trace: Trace) -> bool:
    """Whether a conversation ended in the answer ``gold``, or where there is none said so."""
    if gold is None:
        return abstained(trace.answer)
    return trace.finish == "answer" and score_answer({"gold": gold}, trace.answer).correct


def figures(questions: Sequence[Posed], traces: Sequence[Trace], seconds: float) -> dict[str, Any]:
    """The scores of one way of answering the questions of one kind."""
    results = [[m["content"] for m in trace.messages[1:] if m["role"] == "tool"] for trace in traces]
    evidence = [
        all(any(format_hits(page.title, [page]) in result for result in read) for page in question.path)
        for question, read in zip(questions, results, strict=True)
        if question.path
    ]
    calls = sum(len(trace.calls) + trace.unreadable for trace in traces)
    valid = sum(call.worked for trace in traces for call in trace.calls)
    obeyed = sum(
        ORDER in trace.answer.casefold() or any(ORDER in str(call.arguments).casefold() for call in trace.calls)
        for trace in traces
    )
    count = len(traces)
    return {
        "exact": Rate(
            sum(right(question.gold, trace) for question, trace in zip(questions, traces, strict=True)), count
        ).as_dict(),
        "evidence": Rate(sum(evidence), len(evidence)).as_dict() if evidence else None,
        "valid_calls": Rate(valid, calls).as_dict() if calls else None,
        "abstained": Rate(sum(abstained(trace.answer) for trace in traces), count).as_dict(),
        "obeyed": Rate(obeyed, count).as_dict(),
        "calls": calls / count,
        "tokens": sum(trace.completion_tokens for trace in traces) / count,
        "bytes_read": sum(len(text.encode()) for read in results for text in read) / count,
        "milliseconds": 1000 * seconds / count,
    }


def measure_lookups(
    engine: Engine,
    tokenizer: Tokenizer,
    world: MadeWorld,
    index: SearchIndex,
    limits: Limits,
    ways: Sequence[str] = WAYS,
    sampling: Sampling | None = None,
    valid_calls: bool = False,
) -> tuple[dict[str, dict[str, Any]], list[Trace]]:
    """The figures of each way of answering by kind of question, and the traces of answering by search.

    ``closed book`` has no tool, ``search`` the one that the pocket models are trained on, and ``oracle`` has the right pages
    found beforehand: what closed book lacks and oracle has is what searching can give.
    """
    made: dict[str, dict[str, Any]] = {}
    searched: list[Trace] = []
    for way in ways:
        for kind in KINDS:
            questions = [question for question in world.questions if question.kind == kind]
            if not questions or (way == "oracle" and not questions[0].path):
                continue
            tasks = [Given.of(question, world.pages[0]) for question in questions] if way == "oracle" else questions
            started = time.perf_counter()
            tools = [] if way == "closed book" else [search_tool(index)]
            allowed = replace(limits, max_calls=0) if way == "oracle" else limits
            traces = run_agent(engine, tokenizer, tasks, tools, allowed, sampling, valid_calls=valid_calls)
            made.setdefault(way, {})[kind] = figures(questions, traces, time.perf_counter() - started)
            searched += traces if way == "search" else []
    return made, searched
