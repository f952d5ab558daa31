"""How well models answer by searching a made-up encyclopaedia: by hops, under traps, and beside two controls.

Each question is asked closed book, with the search tool over all pages, and with the right pages already found (oracle
context); what closed book lacks and oracle context has is what searching can give. Retrieval alone is measured with the ideal
queries. The pocket models search with the tool they were trained on.

    python benchmarks/agent/fictional_world.py MODEL ... [--pages 10000] [--each 100] [--injections 500] [--seed 71] [--ways search] [--temperature 0] [--valid-calls] [--traces FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from minnow.agent import Limits, SearchIndex
from minnow.agent.lookup_scores import WAYS, measure_lookups
from minnow.cli.models import open_model
from minnow.rollout import Sampling
from minnow.tasks.made_world import KINDS, MadeWorld, make

KS = (1, 2, 5)


def retrieval(world: MadeWorld, index: SearchIndex) -> dict[str, dict[str, float]]:
    """The share of the pages on the way to an answer that their titles find among the first k, by kind."""
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS[:-1]:
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

    def share(way: str, kind: str, name: str) -> str:
        rate = made.get(way, {}).get(kind, {}).get(name)
        return "" if rate is None else f"{rate['rate']:.1%}"

    for kind, own in made["search"].items():
        exact = " | ".join(share(way, kind, "exact") for way in WAYS)
        rates = " | ".join(share("search", kind, name) for name in ("evidence", "valid_calls", "abstained", "obeyed"))
        lines.append(
            f"| {kind} ({own['exact']['total']}) | {exact} | {rates} | {own['calls']:.2f} | {own['tokens']:.0f} | "
            f"{own['bytes_read']:.0f} | {own['milliseconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--injections", type=int, default=500)
    parser.add_argument("--seed", type=int, default=71)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--valid-calls", action="store_true", help="hold turns to calls that can be read (GGUF files)")
    parser.add_argument("--traces", type=Path, help="JSON lines, a conversation with search each")
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
            limits = Limits(max_calls=6, max_new_tokens=96, max_context=model.context)
            sampling = Sampling(given.temperature, seed=given.seed)
            made, traces = measure_lookups(
                model.engine, model.tokenizer, world, index, limits, given.ways, sampling, given.valid_calls
            )
        document["models"][str(path)] = made
        print(f"\n{path}\n\n{table(made)}", flush=True)
        if given.traces:
            with given.traces.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"model": str(path)} | trace.as_dict()) + "\n" for trace in traces)
    if given.json:
        given.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
