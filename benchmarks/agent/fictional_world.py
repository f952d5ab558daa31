"""How well models answer by searching a made-up encyclopaedia: by hops, under traps, and beside two controls.

Each question is asked closed book, with the search tool over all pages, and with the right pages already found (oracle
context); what closed book lacks and oracle context has is what searching can give. Retrieval alone is measured with the ideal
queries. The pocket models search with the tool they were trained on.

    python benchmarks/agent/fictional_world.py MODEL ... [--pages 10000] [--each 100] [--injections 100] [--seed 71] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from made_world import KINDS, ORDER, MadeWorld, Question, make

from minnow.agent import Limits, SearchIndex, Trace, run_agent, search_tool
from minnow.cli.models import OpenModel, open_model
from minnow.loops import Rate
from minnow.tasks.tools import format_hits, score_answer

KS = (1, 2, 5)
_ABSTAINED = re.compile(
    r"^$|\b(?:not known|unknown|no (?:page|answer|information)|not found|do not know|cannot)\b", re.IGNORECASE
)


def abstained(answer: str) -> bool:
    """Whether an answer says that there is none."""
    return _ABSTAINED.search(answer.strip()) is not None


def figures(questions: Sequence[Question], traces: Sequence[Trace], seconds: float) -> dict[str, Any]:
    """The scores of one way of answering the questions of one kind."""
    right = [
        abstained(trace.answer)
        if question.gold is None
        else trace.finish == "answer" and score_answer({"gold": question.gold}, trace.answer).correct
        for question, trace in zip(questions, traces, strict=True)
    ]
    results = [[m["content"] for m in trace.messages[1:] if m["role"] == "tool"] for trace in traces]
    evidence = [
        all(any(format_hits([page]) in result for result in read) for page in question.path)
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
        "exact": Rate(sum(right), count).as_dict(),
        "evidence": Rate(sum(evidence), len(evidence)).as_dict() if evidence else None,
        "valid_calls": Rate(valid, calls).as_dict() if calls else None,
        "abstained": Rate(sum(abstained(trace.answer) for trace in traces), count).as_dict(),
        "obeyed": Rate(obeyed, count).as_dict(),
        "calls": calls / count,
        "tokens": sum(trace.completion_tokens for trace in traces) / count,
        "bytes_read": sum(len(text.encode()) for read in results for text in read) / count,
        "milliseconds": 1000 * seconds / count,
    }


def ways(model: OpenModel, world: MadeWorld, index: SearchIndex) -> dict[str, dict[str, Any]]:
    """The figures of each way of answering, by kind of question."""
    limits = Limits(max_calls=6, max_new_tokens=96, max_context=model.context)
    asked = {kind: [question for question in world.questions if question.kind == kind] for kind in KINDS}
    made: dict[str, dict[str, Any]] = {}
    for way in ("closed book", "search", "oracle"):
        for kind, questions in asked.items():
            if way == "oracle" and not questions[0].path:
                continue
            tasks = [question.given(world.pages[0]) for question in questions] if way == "oracle" else questions
            tools = [] if way == "closed book" else [search_tool(index)]
            started = time.perf_counter()
            allowed = replace(limits, max_calls=0) if way == "oracle" else limits
            traces = run_agent(model.engine, model.tokenizer, tasks, tools, allowed)
            made.setdefault(way, {})[kind] = figures(questions, traces, time.perf_counter() - started)
    return made


def retrieval(world: MadeWorld, index: SearchIndex) -> dict[str, dict[str, float]]:
    """The share of the pages on the way to an answer that their titles find among the first k, by kind."""
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS[:6]:
        pages = [page for question in world.questions if question.kind == kind for page in question.path]
        ranks = [[hit.id for hit in index.search(page.title, max(KS))] for page in pages]
        found[kind] = {
            f"recall@{k}": sum(page.id in rank[:k] for page, rank in zip(pages, ranks, strict=True)) / len(pages)
            for k in KS
        }
    return found


def table(made: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row for each kind of question, a column for each figure."""
    lines = [
        "| questions | closed book | search | oracle | evidence | valid calls | abstained | obeyed | calls | tokens | bytes | ms |",
        "|---|" + "---:|" * 11,
    ]

    def share(rate: dict[str, Any] | None) -> str:
        return "" if rate is None else f"{rate['rate']:.1%}"

    for kind in KINDS:
        own = made["search"][kind]
        oracle = made["oracle"].get(kind)
        lines.append(
            f"| {kind} ({own['exact']['total']}) | {share(made['closed book'][kind]['exact'])} | {share(own['exact'])} | "
            f"{share(oracle and oracle['exact'])} | {share(own['evidence'])} | {share(own['valid_calls'])} | "
            f"{share(own['abstained'])} | {share(own['obeyed'])} | {own['calls']:.2f} | {own['tokens']:.0f} | "
            f"{own['bytes_read']:.0f} | {own['milliseconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--injections", type=int, default=100)
    parser.add_argument("--seed", type=int, default=71)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    world = make(given.seed, given.pages, given.each, given.injections)
    index = SearchIndex.build(world.pages)
    found = retrieval(world, index)
    print(f"{len(world.pages):,} pages, seed {given.seed}\n")
    for kind, recalls in found.items():
        print(f"retrieval, {kind}: " + ", ".join(f"{name} {value:.1%}" for name, value in recalls.items()))
    document: dict[str, Any] = {"pages": len(world.pages), "seed": given.seed, "retrieval": found, "models": {}}
    for path in given.models:
        with open_model(path, max_new_tokens=96) as model:
            made = ways(model, world, index)
        document["models"][str(path)] = made
        print(f"\n{path}\n\n{table(made)}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
