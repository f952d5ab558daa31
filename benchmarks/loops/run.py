"""How well each loop rule tells doom loops from legitimate repetition, where it sees them begin, and how fast.

Makes labelled outputs of every kind from a seed: the tuning part, on which Minnow's thresholds were chosen, or the
held-out part, which has other seeds, templates and vocabularies. Prints recall by kind, false-positive rate by type of
text, precision, F1, onset error and tokens per second for Minnow's verdict and every published rule, over text; then
Minnow's verdict over token ids, offline and streaming. Real text is added from the data sets in FOLDER, and answers of
trained models, labelled by whether they ever ended, from a file of real_answers.py.

    python benchmarks/loops/run.py [--part held-out] [--seed 1000] [--loops 60] [--clean 60] [--real 60] [--rules 12] [--ids] [--data FOLDER]
        [--answers FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from negatives import NEGATIVES, every_language, negative, real_text
from positives import POSITIVES, Case, positive
from real_answers import ENDLESS, read_answers

from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.loops import (
    CUT_AFTER,
    RULES,
    Lexicon,
    Loop,
    LoopWatch,
    Rate,
    TextLoop,
    find_loops,
    find_text_loops,
    native,
)
from minnow.loops.symbols import read_text

MINNOW = "minnow"
PERSISTENCES = (128, 320, CUT_AFTER)
Found = Loop | TextLoop | None


def make_cases(
    part: str, first: int, loops: int, clean: int, real: int, data: Path | None, answers: Path | None = None
) -> list[Case]:
    seeds, clean_seeds = range(first, first + loops), range(first, first + clean)
    cases = [positive(kind, part, every_language(seed), seed) for kind in POSITIVES for seed in seeds]
    cases += [negative(content, part, every_language(seed), seed) for content in NEGATIVES for seed in clean_seeds]
    cases += list(real_text(data, part, real, first)) if data else []
    return cases + (list(read_answers(answers)) if answers else [])


def score(
    cases: Sequence[Case], found: Sequence[Found], seconds: float, tokens: int, in_text: bool = True
) -> dict[str, Any]:
    """One rule's figures: rates by kind and by type of text, precision and F1 over all, and, where the rule read the
    text, onset errors in periods (the labels count characters)."""
    hits: dict[str, list[bool]] = defaultdict(list)
    errors: dict[str, list[float]] = defaultdict(list)
    for case, one in zip(cases, found, strict=True):
        hits[case.content].append(one is not None)
        if in_text and one is not None and case.loop and case.period:
            onset = one.onset if isinstance(one, Loop) else one.onset_character
            errors[case.content].append(abs(onset - case.onset) / case.period)
    kinds = sorted({case.content for case in cases if case.loop})
    texts = sorted({case.content for case in cases if not case.loop})
    rates = {content: Rate(sum(flags), len(flags)) for content, flags in hits.items()}
    true = sum(rates[kind].count for kind in kinds)
    false = sum(rates[text].count for text in texts)
    loops, clean = sum(rates[kind].total for kind in kinds), sum(rates[text].total for text in texts)
    every = [error for kind in kinds for error in errors[kind]]
    precision = {kind: rates[kind].count / max(1, rates[kind].count + false) for kind in kinds}
    return {
        "recall": Rate(true, loops).as_dict(),
        "false_positives": Rate(false, clean).as_dict(),
        "precision": round(true / max(1, true + false), 4),
        "f1": round(2 * true / max(1, true + false + loops), 4),
        "onset_error_periods": round(statistics.median(every), 4) if every else None,
        "tokens_per_second": round(tokens / seconds),
        "kinds": {
            kind: {
                **rates[kind].as_dict(),
                "precision": round(precision[kind], 4),
                "f1": round(2 * rates[kind].count / (rates[kind].total + rates[kind].count + false), 4),
                "onset_error_periods": round(statistics.median(errors[kind]), 4) if errors[kind] else None,
            }
            for kind in kinds
        },
        "texts": {text: rates[text].as_dict() for text in texts},
    }


def timed(function: Callable[[], list[Found]]) -> tuple[list[Found], float]:
    begun = time.process_time()
    found = function()
    return found, max(1e-9, time.process_time() - begun)


def over_text(cases: list[Case], each: int) -> dict[str, Any]:
    """Minnow on every case, the published rules on the first ``each`` of every kind and type of text, and Minnow on
    those as well."""
    sizes = [len(read_text(case.text)) for case in cases]
    found, seconds = timed(lambda: list(find_text_loops([case.text for case in cases], threads=1)))
    report = {MINNOW: score(cases, found, seconds, sum(sizes))}
    taken: dict[str, int] = defaultdict(int)
    some = []
    for place, case in enumerate(cases):
        taken[case.content] += 1
        if taken[case.content] <= each:
            some.append(place)
    few = [cases[place] for place in some]
    tokens = sum(sizes[place] for place in some)
    rules: dict[str, Any] = {}
    for name, rule in RULES.items() if few else ():
        found, seconds = timed(lambda rule=rule: [rule(case.text) for case in few])  # type: ignore[misc]
        rules[name] = score(few, found, seconds, tokens)
    if few:
        found, seconds = timed(lambda: list(find_text_loops([case.text for case in few], threads=1)))
        report["on the same cases"] = {MINNOW: score(few, found, seconds, tokens), **rules}
    return report


def toy_tokenizer(part: str) -> Tokenizer:
    texts = [negative(c, part, every_language(s), 10_000 + s).text[:8000] for c in NEGATIVES for s in range(10)]
    return train_tokenizer(texts, 4096)


def _ids(tokenizer: Tokenizer, pieces: Sequence[str], case: Case) -> np.ndarray:
    """The case's ids, cut between two tokens as generation would, not inside one."""
    ids = tokenizer.encode(case.whole)
    left = case.cut
    while left > 0 and ids:
        left -= max(1, len(pieces[ids.pop()]))
    return np.array(ids, dtype=np.int32)


def over_ids(cases: list[Case], part: str) -> dict[str, Any]:
    """The same outputs as ids of a byte-level BPE with single digits, with and without a lexicon, and streaming."""
    tokenizer = toy_tokenizer(part)
    pieces = [tokenizer.decode([token], keep_special=False) for token in range(tokenizer.vocab_size)]
    lexicon = Lexicon(pieces)
    rows = [_ids(tokenizer, pieces, case) for case in cases]
    tokens = sum(row.size for row in rows)
    report: dict[str, Any] = {"rows": len(rows), "tokens": tokens}
    for name, known in (("ids alone", None), ("ids with a lexicon", lexicon)):
        found, seconds = timed(lambda known=known: list(find_loops(rows, known, threads=1)))  # type: ignore[misc]
        report[name] = score(cases, found, seconds, tokens, in_text=False)
        report[f"{name}, streaming"] = streamed(cases, rows, known)
    for persistence in PERSISTENCES:
        report[f"{persistence} tokens, streaming"] = streamed(cases, rows, lexicon, persistence, tokenizer)
    return report


def streamed(
    cases: Sequence[Case],
    rows: Sequence[np.ndarray],
    lexicon: Lexicon | None,
    persistence: int = 0,
    tokenizer: Tokenizer | None = None,
    width: int = 64,
) -> dict[str, Any]:
    """64 rows side by side: clean rows cut, loops stopped, share of the looping part that was saved; with a
    ``tokenizer`` as the engines cut, asking the text too."""

    def text(slot: int) -> str:
        assert tokenizer is not None
        return tokenizer.decode(steps[: step + 1, slot][active[: step + 1, slot]])

    watch = LoopWatch(width, lexicon=lexicon, persistence=persistence, text=text if tokenizer else None)
    order = sorted(range(len(rows)), key=lambda place: rows[place].size)
    cut: dict[str, list[bool]] = defaultdict(list)
    saved, spent, pushed = 0, 0.0, 0
    for begin in range(0, len(order), width):
        batch = order[begin : begin + width]
        longest = max(rows[place].size for place in batch)
        steps = np.zeros((longest, width), np.int64)
        active = np.zeros((longest, width), np.bool_)
        for slot, place in enumerate(batch):
            steps[: rows[place].size, slot] = rows[place]
            active[: rows[place].size, slot] = True
            watch.reset(slot)
        stopped: dict[int, int] = {}
        begun = time.process_time()
        for step in range(longest):
            for slot in watch.push(steps[step], active[step]):
                stopped[slot] = step + 1
        spent += time.process_time() - begun
        pushed += int(active.sum())
        for slot, place in enumerate(batch):
            case = cases[place]
            # A recovered loop may rightly be stopped while it loops.
            cut[case.content].append(slot in stopped)
            if case.loop and slot in stopped:
                saved += rows[place].size - stopped[slot]
    clean = [flag for case_content, flags in cut.items() if case_content in clean_types(cases) for flag in flags]
    loops = [flag for kind, flags in cut.items() if kind in (*POSITIVES, ENDLESS) for flag in flags]
    return {
        "clean_rows_cut": Rate(sum(clean), len(clean)).as_dict(),
        "recovered_cut": sum(cut["recovered"]),
        "cut_by_type": {kind: sum(flags) for kind, flags in cut.items() if kind in clean_types(cases) and any(flags)},
        "loops_stopped": Rate(sum(loops), len(loops)).as_dict(),
        "loop_tokens_saved": round(saved / max(1, sum(r.size for r, c in zip(rows, cases, strict=True) if c.loop)), 4),
        "tokens_per_second": round(pushed / spent),
    }


def clean_types(cases: Sequence[Case]) -> set[str]:
    return {case.content for case in cases if not case.loop and case.content != "recovered"}


def offline_speed(rows: int = 3000) -> dict[str, int]:
    """Tokens per second of one core over ids of many lengths: prose-like, table-like and looping rows alike."""
    rng = np.random.default_rng(0)
    made = []
    for row in range(rows):
        size = int(100 * 160 ** rng.random())
        ids = rng.zipf(1.3, size) % 60_000
        if row % 3 == 1:
            ids[size // 3 :] = np.resize(ids[: rng.integers(3, 200)], size - size // 3)
        if row % 3 == 2:
            ids = np.where(np.arange(size) % 9 < 6, np.arange(size) % 9, ids)
        made.append(ids.astype(np.int32))
    _, seconds = timed(lambda: list(find_loops(made, threads=1)))
    return {"rows": rows, "tokens": sum(map(len, made)), "tokens_per_second": round(sum(map(len, made)) / seconds)}


def streaming_speed(steps: int = 4000, width: int = 64) -> int:
    """Tokens per second of one core over ``width`` rows that hardly repeat themselves, the best of three rounds."""
    ids, active = np.random.default_rng(0).zipf(1.3, (steps, width)) % 60_000, np.ones(width, np.bool_)
    seconds = []
    for _ in range(3):
        watch = LoopWatch(width)
        begun = time.process_time()
        for step in ids:
            watch.push(step, active)
        seconds.append(time.process_time() - begun)
    return round(ids.size / min(seconds))


def printed(report: dict[str, Any]) -> str:
    def percent(rate: dict[str, Any]) -> str:
        return f"{rate['rate']:.1%}"

    def line(name: str, one: dict[str, Any]) -> str:
        error = one["onset_error_periods"]
        return (
            f"{name:24} {percent(one['recall']):>8} {percent(one['false_positives']):>8} {one['precision']:>9.3f} "
            f"{one['f1']:>6.3f} {'' if error is None else f'{error:.2f}':>8} {one['tokens_per_second'] / 1e6:>10.2f}"
        )

    head = f"{'rule':24} {'recall':>8} {'false+':>8} {'precision':>9} {'F1':>6} {'onset':>8} {'Mtokens/s':>10}"
    text = report["text"]
    few = text.get("on the same cases", {})
    lines = [
        f"{report['part']}: {report['loops']} loops, {report['clean']} others",
        head,
        line("minnow, all", text[MINNOW]),
    ]
    lines += [line(name, one) for name, one in few.items()]
    ids = report.get("ids", {})
    lines += [line(name, ids[name]) for name in ("ids alone", "ids with a lexicon") if name in ids]
    for group in ("kinds", "texts"):
        columns = few or {MINNOW: text[MINNOW]}
        lines += [
            "",
            f"{'recall' if group == 'kinds' else 'false positives':22} {'minnow':>7} "
            + " ".join(f"{n[:9]:>9}" for n in few if n != MINNOW),
        ]
        for content, rate in text[MINNOW][group].items():
            others = " ".join(f"{percent(one[group][content]):>9}" for name, one in columns.items() if name != MINNOW)
            more = f"  onset {rate['onset_error_periods']}" if rate.get("onset_error_periods") is not None else ""
            lines.append(f"{content:22} {percent(rate):>7} {others}{more}")
    for name, one in ids.items():
        if name.endswith("streaming"):
            lines.append(
                f"\n{name}: {one['clean_rows_cut']['count']} of {one['clean_rows_cut']['total']} clean rows cut "
                f"{one['cut_by_type']}, {one['recovered_cut']} recovered, {percent(one['loops_stopped'])} of loops stopped, "
                f"{one['loop_tokens_saved']:.1%} of their tokens saved, {one['tokens_per_second'] / 1e6:.2f}M tokens/s"
            )
    if "offline" in report:
        lines.append(f"\noffline over ids, one core: {report['offline']['tokens_per_second'] / 1e6:.1f}M tokens/s")
        lines.append(f"streaming over 64 rows of fresh ids: {report['streaming'] / 1e6:.1f}M tokens/s")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["tuning", "held-out"], default="held-out")
    parser.add_argument(
        "--seed", type=int, default=1000, help="of the first case of every kind; the next have the next ones"
    )
    parser.add_argument("--loops", type=int, default=60, help="of every kind")
    parser.add_argument("--clean", type=int, default=60, help="of every type of text")
    parser.add_argument("--real", type=int, default=60, help="stretches of every real file")
    parser.add_argument("--rules", type=int, default=12, help="cases of every kind and type for the published rules")
    parser.add_argument("--ids", action="store_true", help="also over token ids, offline and streaming")
    parser.add_argument("--data", type=Path, help="folder of public data sets, to add stretches of real text")
    parser.add_argument("--answers", type=Path, help="file of real_answers.py, to add answers of trained models")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    cases = make_cases(
        options.part, options.seed, options.loops, options.clean, options.real, options.data, options.answers
    )
    report: dict[str, Any] = {
        "part": options.part,
        "seed": options.seed,
        "loops": sum(case.loop for case in cases),
        "clean": sum(not case.loop for case in cases),
        "implementation": native.load().description,
        "text": over_text(cases, options.rules),
    }
    if options.ids:
        report["ids"] = over_ids(cases, options.part)
        report["offline"] = offline_speed()
        report["streaming"] = streaming_speed()
    print(printed(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
