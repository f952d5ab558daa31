"""What watching for loops, and penalties on repeats, cost a token that is generated, one row or several at a time.

Answers of the benchmark's kinds (prose, tables, code, loops) are fed token by token, as a decoder would, to the watches
over ids and over text, to the stop of transformers, and their context to the DRY and LZ processors over a vocabulary of
32,768 ids. Prints processor time a step in microseconds, the median of rounds and their spread, and the share of the
10,000 microseconds that a 1B model at 100 tokens/s takes.

    python benchmarks/loops/cost.py [--context 4096] [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from negatives import NEGATIVES
from positives import POSITIVES
from run import toy_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from words import Words

from minnow.data.tokenizer import Tokenizer
from minnow.loops import CUT_AFTER, Dry, Lexicon, LoopWatch, LzPenalty, Penalty, TextWatch, breaker_tokens, native
from minnow.loops.integrations.transformers import LoopStopping, PenaltyProcessor

CONTENTS = ["prose", "table", "json rows", "program", "listing", "near-copy", "shuffled", "short period"]
DECODE = 10_000.0  # microseconds of a step at 100 tokens/s
VOCABULARY = 32_768
PROMPT = 64


def answer(content: str, tokenizer: Tokenizer, size: int) -> list[int]:
    """``size`` ids of one content."""
    words = Words("tuning", "english", random.Random(content))
    asked = size
    while True:
        text = NEGATIVES[content](words, asked) if content in NEGATIVES else POSITIVES[content][0](words, asked).whole
        ids = tokenizer.encode(text)
        if len(ids) >= size:
            return ids[:size]
        asked *= 2


def watches(
    tokenizer: Tokenizer, theirs: PreTrainedTokenizerBase
) -> dict[str, tuple[Callable[[], Any], Callable[[Any, np.ndarray, torch.Tensor, int], None]]]:
    """By name: what to make for an answer, and what a step does with it, the answers' ids [n, rows], the same behind
    a prompt [rows, prompt + n], and the step."""
    pieces = [tokenizer.decode([token], keep_special=True) for token in range(tokenizer.vocab_size)]
    lexicon = Lexicon(pieces)
    active = np.ones(1, np.bool_)
    seen: list[int] = []

    def with_text() -> LoopWatch:
        seen.clear()
        return LoopWatch(1, lexicon=lexicon, persistence=CUT_AFTER, text=lambda _: tokenizer.decode(seen))

    def push(watch: LoopWatch, ids: np.ndarray, _: torch.Tensor, step: int) -> None:
        watch.push(ids[step], active)

    def push_with_text(watch: LoopWatch, ids: np.ndarray, _: torch.Tensor, step: int) -> None:
        seen.append(int(ids[step, 0]))
        watch.push(ids[step], active)

    def push_text(watch: TextWatch, ids: np.ndarray, _: torch.Tensor, step: int) -> None:
        watch.push(pieces[ids[step, 0]])

    def stop(criterion: LoopStopping, _: np.ndarray, whole: torch.Tensor, step: int) -> None:
        criterion(whole[:, : PROMPT + step + 1], None)

    # The lexicon is made once for a tokenizer, not for an answer.
    stopping = LoopStopping(theirs)
    return {
        "LoopWatch, ids alone": (lambda: LoopWatch(1), push),
        "LoopWatch, ids and text": (with_text, push_with_text),
        "TextWatch": (TextWatch, push_text),
        "LoopStopping, ids alone": (LoopStopping, stop),
        "LoopStopping, ids and text": (lambda: stopping, stop),
    }


def cost_of_watching(context: int, rounds: int, tokenizer: Tokenizer, theirs: PreTrainedTokenizerBase) -> list[dict]:
    figures: dict[tuple[str, str], list[float]] = {}
    ways = watches(tokenizer, theirs)
    for content in CONTENTS:
        ids = np.array(answer(content, tokenizer, context))[:, None]
        whole = torch.from_numpy(np.concatenate([np.full(PROMPT, 9), ids[:, 0]]))[None]
        for _ in range(rounds):
            for name, (make, step) in ways.items():
                watch = make()
                begun = time.process_time()
                for place in range(context):
                    step(watch, ids, whole, place)
                figures.setdefault((name, content), []).append((time.process_time() - begun) / context * 1e6)
    return [summary(name, content, seconds) for (name, content), seconds in figures.items()]


def cost_of_penalties(context: int, rounds: int, tokenizer: Tokenizer, steps: int = 100) -> list[dict]:
    """Of a step behind ``context`` tokens, the copy of the logits that a penalty makes included."""
    breakers = breaker_tokens(tokenizer.decode([token]) for token in range(tokenizer.vocab_size))
    ways: dict[str, tuple[Penalty, ...]] = {
        "a processor that does nothing": (),
        "DRY": (Dry(),),
        "DRY with llama.cpp's breakers": (Dry(breakers=breakers),),
        "LZ penalty": (LzPenalty(),),
    }
    figures: dict[tuple[str, str], list[float]] = {}
    for content in CONTENTS:
        ids = torch.tensor(answer(content, tokenizer, context + steps))
        for rows in (1, 8):
            whole, scores = ids.repeat(rows, 1), torch.zeros(rows, VOCABULARY)
            for _ in range(rounds):
                for name, penalties in ways.items():
                    processor = PenaltyProcessor(*penalties)
                    processor(whole[:, :PROMPT], scores)
                    begun = time.process_time()
                    for step in range(steps):
                        processor(whole[:, : context + step], scores)
                    spent = (time.process_time() - begun) / steps * 1e6
                    figures.setdefault((f"{name}, {rows} row{'s' * (rows > 1)}", content), []).append(spent)
    return [summary(name, content, seconds) for (name, content), seconds in figures.items()]


def summary(name: str, content: str, spent: list[float]) -> dict[str, Any]:
    return {
        "what": name,
        "content": content,
        "microseconds": round(statistics.median(spent), 2),
        "least": round(min(spent), 2),
        "most": round(max(spent), 2),
    }


def printed(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(row["what"] for row in rows))
    by = {(row["what"], row["content"]): row for row in rows}
    lines = [f"{'microseconds a step':38}" + "".join(f"{content:>14}" for content in CONTENTS) + f"{'of 10 ms':>10}"]
    for name in names:
        cells = [by[name, content] for content in CONTENTS]
        worst = max(cell["microseconds"] for cell in cells)
        shown = "".join(f"{cell['microseconds']:>8.1f} ±{(cell['most'] - cell['least']) / 2:>4.1f}" for cell in cells)
        lines.append(f"{name:38}{shown}{worst / DECODE:>10.2%}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=4096, help="tokens of an answer, and behind a penalised step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = toy_tokenizer("tuning")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        theirs = AutoTokenizer.from_pretrained(folder)
    report = {
        "implementation": native.load().description,
        "context": options.context,
        "vocabulary": VOCABULARY,
        "watching": cost_of_watching(options.context, options.rounds, tokenizer, theirs),
        "penalties": cost_of_penalties(options.context, options.rounds, tokenizer),
    }
    print(printed(report["watching"]), printed(report["penalties"]), sep="\n\n")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
