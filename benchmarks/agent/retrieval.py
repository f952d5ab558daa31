"""How often the page with the answer is among the first k, on real text: facts of countries, and SQuAD as an open corpus.

Countries: the factbook's records, a page for each, and questions about capitals, populations and the like, drawn from the
records. SQuAD: every passage of the file is a page, and its questions are asked without their passage; found is the passage
that the question was written for. Shown are answers that stand in what the tools give the model: a search's five results,
and the passages of the first page that open_page chooses. With a model: what it answers with its tools, by SQuAD's exact match
and F1.

    python benchmarks/agent/retrieval.py [--factbook FILE] [--squad FILE] [--questions 2000] [--model MODEL --answers 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import html
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from minnow.agent import Limits, SearchIndex, run_agent, search_tool
from minnow.agent.lookup_scores import abstained
from minnow.agent.search import LocalSearch
from minnow.agent.web_tools import web_tools
from minnow.cli.models import OpenModel, open_model
from minnow.data.documents import open_file
from minnow.loops import Rate
from minnow.rollout.text_engine import ChatPrompt
from minnow.tasks.scorers.squad import score
from minnow.tasks.tools import bare

KS = (1, 2, 5, 10)
# The path of each fact in a record, and how it is asked for.
FACTS = {
    ("Government", "Capital", "name"): "What is the capital of {x}?",
    ("Geography", "Location"): "Where does {x} lie?",
    ("Geography", "Area", "total "): "How large is the total area of {x}?",
    ("Geography", "Climate"): "What is the climate of {x} like?",
    ("Geography", "Natural resources"): "Which natural resources does {x} have?",
    ("People and Society", "Population", "total"): "How many people live in {x}, what is its population?",
    ("People and Society", "Religions"): "Which religions are there in {x}?",
    ("Economy", "Industries"): "What are the industries of {x}?",
    ("Economy", "Agricultural products"): "What are the agricultural products of {x}?",
    ("Communications", "Internet country code"): "What is the internet country code of {x}?",
    ("Government", "Government type"): "What type of government does {x} have?",
    ("Government", "Independence"): "When did {x} become independent, its independence?",
}


class Asked(NamedTuple):
    """A question, the id of the page that answers it, and texts one of which is the answer."""

    text: str
    page: str
    answers: tuple[str, ...]


Pages = list[tuple[str, str, str]]


def rows(file: Path) -> Iterator[Any]:
    with open_file(file) as stream:
        yield from map(json.loads, stream)


def plain(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def countries(file: Path) -> tuple[Pages, list[Asked]]:
    """A page for each country, and the facts that its record has."""
    pages: Pages = []
    asked = []
    for row in rows(file):
        record = row["record"]
        names = record.get("Government", {}).get("Country name", {})
        said = (names.get("conventional short form") or names.get("conventional long form") or {}).get("text", "")
        name = plain(said).partition(" (")[0]
        if not name or name == "none":
            continue
        parts = (f"{section}\n" + "\n".join(_texts(fields, section)) for section, fields in record.items())
        pages.append((row["code"], name, "\n".join(parts)))
        for path, question in FACTS.items():
            value = record
            for key in path:
                value = value.get(key, {}) if isinstance(value, dict) else {}
            if isinstance(value, dict) and value.get("text"):
                asked.append(Asked(question.format(x=name), row["code"], (plain(value["text"])[:60],)))
    return pages, asked


def _texts(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            yield f"{name.strip()}: {plain(value['text'])}"
        for key, item in value.items():
            yield from _texts(item, key)


def squad(file: Path) -> tuple[Pages, list[Asked]]:
    """Every passage as a page, every question with the passage it was written for."""
    pages: Pages = []
    asked = []
    for row in rows(file):
        for number, paragraph in enumerate(row["paragraphs"]):
            name = f"{row['title']}/{number}"
            pages.append((name, row["title"].replace("_", " "), paragraph["context"]))
            asked += [
                Asked(each["question"], name, tuple(answer["text"] for answer in each["answers"]))
                for each in paragraph["qas"]
                if each["answers"]
            ]
    return pages, asked


def answered(index: SearchIndex, asked: list[Asked], model: OpenModel) -> dict[str, Any]:
    """What a model answers to questions, searching the pages with the tools it knows."""
    pocket = model.run is not None and model.run.pocket_run() is not None
    tools = [search_tool(index)] if pocket else web_tools(LocalSearch(index))
    tasks = [ChatPrompt(str(place), [{"role": "user", "content": one.text}]) for place, one in enumerate(asked)]
    limits = Limits(max_calls=6, max_new_tokens=96, max_context=model.context)
    traces = run_agent(model.engine, model.tokenizer, tasks, tools, limits)
    scores = [score(list(one.answers), bare(trace.answer)) for one, trace in zip(asked, traces, strict=True)]
    count = len(traces)
    return {
        "exact": Rate(sum(each.correct for each in scores), count).as_dict(),
        "f1": sum(each.value for each in scores) / count,
        "abstained": Rate(sum(abstained(trace.answer) for trace in traces), count).as_dict(),
        "calls": sum(len(trace.calls) for trace in traces) / count,
        "finishes": dict(Counter(trace.finish for trace in traces)),
        "traces": [trace.as_dict() for trace in traces[:10]],
    }


def measure(pages: Pages, asked: list[Asked], most: int, model: OpenModel | None, answers: int) -> dict[str, Any]:
    index = SearchIndex.build(pages)
    asked = Random(0).sample(asked, min(most, len(asked)))
    started = time.process_time()
    found = [[hit.id for hit in index.search(one.text, max(KS))] for one in asked]
    seconds = time.process_time() - started
    recalls = {
        f"recall@{k}": Rate(
            sum(one.page in hits[:k] for one, hits in zip(asked, found, strict=True)), len(asked)
        ).as_dict()
        for k in KS
    }
    search, read = web_tools(LocalSearch(index))
    shown = 0
    for one, hits in zip(asked, found, strict=True):
        given = search.function(query=one.text)
        given += read.function(url=hits[0], looking_for=one.text) if hits else ""
        shown += any(" ".join(answer.split()) in " ".join(given.split()) for answer in one.answers)
    return {
        "pages": len(pages),
        "questions": len(asked),
        "cpu_ms": 1000 * seconds / len(asked),
        "shown": Rate(shown, len(asked)).as_dict(),
        **recalls,
        **({} if model is None else {"answers": answered(index, asked[:answers], model)}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factbook", type=Path)
    parser.add_argument("--squad", type=Path)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    document = {}
    with open_model(given.model, max_new_tokens=96) if given.model else nullcontext() as model:
        for name, file, read in (("countries", given.factbook, countries), ("squad", given.squad, squad)):
            if file:
                document[name] = measure(*read(file), given.questions, model, given.answers)
    print("| corpus | pages | questions | " + " | ".join(f"recall@{k}" for k in KS) + " | answer shown | CPU ms |")
    print("|---|" + "---:|" * (len(KS) + 4))
    for name, made in document.items():
        shares = " | ".join(f"{made[f'recall@{k}']['rate']:.1%}" for k in KS)
        print(
            f"| {name} | {made['pages']:,} | {made['questions']:,} | {shares} | {made['shown']['rate']:.1%} | {made['cpu_ms']:.1f} |"
        )
    if given.model:
        print("\n| corpus | answers | exact | F1 | abstained | calls |\n|---|" + "---:|" * 5)
    for name, made in document.items():
        if found := made.get("answers"):
            print(
                f"| {name} | {found['exact']['total']} | {found['exact']['rate']:.1%} | {found['f1']:.3f} | "
                f"{found['abstained']['rate']:.1%} | {found['calls']:.2f} |"
            )
    if given.json:
        given.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
