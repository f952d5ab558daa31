"""Outputs that repeat much, or look like it, and are not caught in a loop; made, and from real text where there is any."""

from __future__ import annotations

import hashlib
import itertools
import json
import lzma
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from positives import (
    CHARACTERS,
    Case,
    _call,
    between_words,
    enumeration,
    near_copy,
    paraphrase,
    short_period,
    shuffled,
    token,
)
from words import LANGUAGES, Words


def _grown(tokens: int, piece: Callable[[int], str], before: str = "", most: int = 1 << 30, least: int = 1) -> str:
    """``before`` and pieces up to the length asked for, at least ``least`` and at most ``most`` of them."""
    out, size = [before], len(before)
    for k in range(most):
        out.append(piece(k))
        size += len(out[-1])
        if size >= tokens * CHARACTERS and k + 1 >= least:
            break
    return "".join(out)


def prose(w: Words, tokens: int) -> str:
    return w.prose(tokens)


def code(w: Words, tokens: int) -> str:
    fields = [name.lower() for name in w.names(max(4, tokens // 30))]
    if w.part == "tuning":
        head = f"class {w.name()}:\n    def __init__(self, {', '.join(fields[:8])}):\n"
        head += "".join(f"        self.{each} = {each}\n" for each in fields[:20])
        return head + "".join(f"\n    def get_{each}(self):\n        return self.{each}\n" for each in fields)
    head = f"public class {w.name()} {{\n" + "".join(f"    private int {each};\n" for each in fields[:20])
    return head + "".join(
        f"\n    public int get{each.title()}() {{\n        return {each};\n    }}\n\n    public void set{each.title()}(int {each}) {{\n"
        f"        this.{each} = {each};\n    }}\n" for each in fields
    )  # fmt: skip


def program(w: Words, tokens: int) -> str:
    rng = w.rng

    def line(_: int) -> str:
        a, b = w.name().lower(), w.name().lower()
        return rng.choice([
            f"    if {a} > {w.number()}:\n        return {b}\n", f"    {a} = {b}[{w.number()}] + 1\n",
            f"    for i in range(len({a})):\n        {a}[i] = {b}({a}[i])\n", f"    # {w.phrase(6)}\n",
            f"\ndef {a}({b}, size={w.number()}):\n", f"    print(f\"{{{a}}} {w.word()}\")\n",
        ])  # fmt: skip

    return _grown(tokens, line, f"import {w.name().lower()}\n\n")


def unit_tests(w: Words, tokens: int) -> str:
    rng, f = w.rng, w.name().lower()
    form = (
        "def test_{f}_{i}():\n    assert {f}({a}, {b}) == {c}\n\n" if w.part == "tuning"
        else "  it('{f} case {i}', () => {{\n    expect({f}({a}, {b})).toBe({c});\n  }});\n"
    )  # fmt: skip
    return _grown(
        tokens, lambda i: form.format(f=f, i=i, a=rng.randint(0, 999), b=rng.randint(0, 99), c=rng.randint(0, 9999))
    )


def table(w: Words, tokens: int) -> str:
    rng = w.rng
    head = "| " + " | ".join(w.names(3)) + " |\n" + "|---" * 3 + "|\n"
    if rng.random() < 0.3:
        states = w.names(3)
        return _grown(tokens, lambda _: f"| {w.name()} | {rng.choice(states)} | {rng.randint(1, 5)} |\n", head)
    return _grown(tokens, lambda _: f"| {w.name()} | {rng.randint(100, 20000)} | {rng.random():.3f} |\n", head)


def numbers(w: Words, tokens: int) -> str:
    rng = w.rng
    joint = "\t" if w.part == "tuning" else ","
    wide = rng.randint(2, 5)
    return _grown(tokens, lambda i: joint.join([str(i), *(str(rng.randint(0, 9999)) for _ in range(wide))]) + "\n")


def json_rows(w: Words, tokens: int) -> str:
    rng = w.rng
    a, b, c, d = (name.lower() for name in w.names(4))
    states = [name.lower() for name in w.names(3)]

    def row(i: int) -> str:
        value = {a: i, b: w.name(), c: rng.randint(10, 99), d: rng.choice([True, False])}
        if w.part == "held-out":
            value = {"id": w.number(), a: {b: rng.choice(states), c: round(rng.random(), 2)}, d: w.phrase(2)}
        return "  " + json.dumps(value, ensure_ascii=False) + ",\n"

    return _grown(tokens, row, "[\n")


def listing(w: Words, tokens: int) -> str:
    """Different items behind the same words."""
    rng = w.rng
    a, b = w.phrase(rng.randint(2, 5)), w.phrase(rng.randint(2, 4))
    region = w.name()
    if w.part == "tuning":
        return _grown(tokens, lambda i: f"{i + 1}. {a} {w.name()} {b}\n", "", least=5)
    return _grown(tokens, lambda _: f"- {w.name()}: {a} {region}, {b} {w.name()}, {w.number()}.\n", "", least=5)


def name_list(w: Words, tokens: int) -> str:
    return _grown(tokens, lambda _: w.name() + ", ", w.phrase(4) + ": ")


def song(w: Words, tokens: int) -> str:
    """Verses with a chorus after each; the chorus may hold a line twice."""
    rng = w.rng
    size = rng.randint(2, 6)
    lines = [w.phrase(rng.randint(3, 9)) for _ in range(size)]
    chorus = "\n".join(lines + ([lines[0]] * rng.randint(1, 3) if rng.random() < 0.5 else [])) + "\n\n"

    def part(k: int) -> str:
        return chorus if k % 2 else "".join(w.phrase(rng.randint(4, 9)) + "\n" for _ in range(rng.randint(4, 8))) + "\n"

    return _grown(tokens, part, "", least=4)


def litany(w: Words, tokens: int) -> str:
    answer = w.phrase(w.rng.randint(2, 5))
    return _grown(min(tokens, 4000), lambda _: f"{w.phrase(w.rng.randint(2, 4))}, {answer}.\n")


def divider(w: Words, tokens: int) -> str:
    rng = w.rng
    mark = rng.choice("-=*" if w.part == "tuning" else "_~#")
    text = _grown(max(1, tokens - 100), lambda _: w.prose(40) + "\n" + mark * rng.choice([3, 20, 40, 60, 80]) + "\n")
    return text + mark * rng.randint(0, 110)


def digits(w: Words, tokens: int) -> str:
    """A number in full: decimals of a fraction, zeros, digits without a pattern; it may be cut inside."""
    rng = w.rng
    kind = rng.random()
    if kind < 0.4:
        p, q = (rng.randint(1, 6), 7) if w.part == "tuning" else (rng.randint(1, 12), 13)
        number = f"{p} / {q} = 0." + str(10**120 * p // q).zfill(120)[: rng.randint(20, 120)]
    elif kind < 0.6:
        number = "1" + "0" * rng.randint(20, 100)
    else:
        number = "3." + "".join(rng.choices("0123456789", k=rng.randint(100, 900)))
    return w.prose(min(tokens, 3000)) + " " + number


def equal_rows(w: Words, tokens: int) -> str:
    row = f"{w.name()}: {w.name().lower()}\n"
    return w.prose(tokens) + "\n" + row * w.rng.randint(3, 10)


def status_log(w: Words, tokens: int) -> str:
    rng, a = w.rng, w.phrase(3)
    if rng.random() < 0.3:  # a short run of rows in which only the number differs
        return w.prose(tokens) + "\n" + "".join(f"{a} {i} ... ok\n" for i in range(1, rng.randint(4, 13)))
    second = 0

    def row(i: int) -> str:
        nonlocal second
        second += rng.randint(1, 50)
        clock = f"{second // 3600 % 24:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
        if w.part == "tuning":
            return f"[{clock}] INFO {a} {i} {rng.randint(1, 900)} ms\n"
        return f"{clock} worker-{rng.randint(1, 9)} {a}, loss {rng.random() * 5:.4f}, step {i}\n"

    return _grown(tokens, row)


def sums(w: Words, tokens: int) -> str:
    rng, total = w.rng, 0
    text = ""
    form = "Step {k}: now add {d}. {t} + {d} = {n}. " if w.part == "tuning" else "{t} plus {d} is {n}.\n"
    for k in range(1, max(8, tokens // 14)):
        d = rng.randint(2, 9 if k % 2 else 999)
        text += form.format(k=k, d=d, t=total, n=total + d)
        total += d
    return text


def column_sum(w: Words, tokens: int) -> str:
    rng, carry, text = w.rng, 0, ""
    for _ in range(min(60, tokens // 18)):
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        total = a + b + carry
        text += f"{a} plus {b} plus carry {carry} is {total}, write {total % 10}, carry {total // 10}.\n"
        carry = total // 10
    return w.prose(40) + "\n" + text


def times_table(w: Words, tokens: int) -> str:
    n = w.rng.randint(2, 19)
    form = "{i} times {n} is {p}\n" if w.part == "tuning" else "{n} × {i} = {p}\n"
    return (
        w.prose(min(tokens, 500))
        + "\n"
        + "".join(form.format(i=i, n=n, p=i * n) for i in range(1, w.rng.randint(12, 40)))
    )


def counting(w: Words, tokens: int) -> str:
    joint = "\n" if w.part == "tuning" else ", "
    return w.prose(min(tokens, 300)) + "\n" + joint.join(map(str, range(1, w.rng.choice([31, 101, 151]))))


def calendar(w: Words, tokens: int) -> str:
    rng, kinds = w.rng, w.names(4)
    form = "2026-{m:02d}-{d:02d}: {x}\n" if w.part == "tuning" else "{d}.{m}.2027 {x} {t} C\n"
    rows = [
        form.format(m=m, d=d, x=rng.choice(kinds), t=rng.randint(-9, 30)) for m in range(1, 7) for d in range(1, 29)
    ]
    return w.prose(min(tokens, 300)) + "\n" + "".join(rows[: rng.randint(20, 160)])


def matrix(w: Words, tokens: int) -> str:
    rng = w.rng
    size = rng.randint(4, 20)
    most = 9 if w.part == "tuning" else 1
    return w.prose(min(tokens, 300)) + "\n" + "".join(
        "[" + ", ".join(str(rng.randint(0, most)) for _ in range(size)) + "],\n" for _ in range(size)
    )  # fmt: skip


def walk(w: Words, tokens: int) -> str:
    rng = w.rng
    places = w.names(rng.randint(12, 40))
    way = [rng.choice(places) for _ in range(rng.randint(15, 60))]
    form = "Go from {a} to {b}. " if w.part == "tuning" else "{a} -> {b}; "
    return w.prose(min(tokens, 300)) + "\n" + "".join(form.format(a=a, b=b) for a, b in itertools.pairwise(way))


def restated(w: Words, tokens: int) -> str:
    draft = w.prose(tokens // 2)
    return draft + "\n\n" + w.sentence() + "\n\n" + draft[: w.rng.randint(len(draft) // 2, len(draft))]


def self_checks(w: Words, tokens: int) -> str:
    """The same claim checked two to five times, with new reasoning between."""
    rng = w.rng
    claim = w.sentence(rng.randint(10, 25)) + " " + w.sentence(12)
    word = "Wait, let me check that again. " if w.part == "tuning" else "Hmm, hold on, is that right? "
    return _grown(
        tokens, lambda _: w.prose(max(15, min(400, tokens // 6))) + " " + word + claim + " ", "", most=5, least=2
    )


def recovered(w: Words, tokens: int) -> str:
    """A loop of some length, and then at least 25 words of something new."""
    rng = w.rng
    loop = rng.choice([token, short_period, near_copy, shuffled, paraphrase, enumeration])(
        w, max(100, min(3000, tokens // 2))
    )
    return loop.whole[: len(loop.whole) - loop.cut] + "\n\n" + w.prose(rng.randint(25, max(30, tokens // 2)))


def markup(w: Words, tokens: int) -> str:
    rng, style = w.rng, w.name().lower()
    if w.part == "tuning":
        return _grown(
            tokens, lambda _: f'<li class="{style}"><a href="/{w.name().lower()}">{w.phrase(2)}</a></li>\n', "<ul>\n"
        )
    return _grown(
        tokens, lambda _: f"  <row><{style}>{w.name()}</{style}><value unit=\"m\">{rng.randint(1, 9999)}</value></row>\n", "<rows>\n"
    )  # fmt: skip


def dialogue(w: Words, tokens: int) -> str:
    a, b = w.names(2)
    return _grown(tokens, lambda k: f"{b if k % 2 else a}: {w.sentence(w.rng.randint(2, 10))}\n", least=4)


def encoded(w: Words, tokens: int) -> str:
    rng = w.rng
    letters = rng.choice(
        ["ACGT", "0123456789abcdef", "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"]
    )
    return (
        w.prose(20)
        + "\n"
        + "\n".join("".join(rng.choices(letters, k=60)) for _ in range(max(2, min(200, tokens // 12))))
    )


def polling(w: Words, tokens: int) -> str:
    """The same call, and each time another result; or one tool over a batch of different arguments."""
    rng, form = w.rng, w.rng.randrange(3)
    tool, key = w.name().lower(), w.name().lower()
    job, done, batch = w.name().lower(), 0, rng.random() < 0.5

    def call(_: int) -> str:
        nonlocal done
        if batch:
            return _call(w, form, tool, {key: w.name().lower(), "limit": 10}, {"status": "ok"})
        done += rng.randint(1, 9)
        return _call(w, form, tool, {key: job}, {"status": "running", "done": done})

    return _grown(tokens, call, w.sentence() + "\n", least=3)


def glossary(w: Words, tokens: int) -> str:
    """Question and answer in a fixed mould."""
    a, b = w.phrase(3), w.phrase(2)
    return _grown(tokens, lambda k: f"**{a} {w.name()}?**\n{b} {w.sentence(w.rng.randint(4, 12))}\n\n", least=3)


NEGATIVES: dict[str, Callable[[Words, int], str]] = {
    each.__name__.replace("_", " "): each
    for each in (
        prose, code, program, unit_tests, table, numbers, json_rows, listing, name_list, song, litany, divider, digits, equal_rows,
        status_log, sums, column_sum, times_table, counting, calendar, matrix, walk, restated, self_checks, recovered, markup,
        dialogue, encoded, polling, glossary,
    )
}  # fmt: skip


def negative(content: str, part: str, language: str, seed: int) -> Case:
    rng = random.Random(f"{part} {content} {seed}")
    tokens = int(100 * 320 ** rng.random())
    text = NEGATIVES[content](Words(part, language, rng), tokens)
    cut = rng.randint(0, min(200, len(text) // 3)) if content != "recovered" else 0
    return Case(text, between_words(text, cut), False, content, language)


# --- real text, from the folder that --data names ---

_FILES: dict[str, tuple[str, Callable[[dict[str, object]], str]]] = {
    "real books": ("books_core.jsonl.xz", lambda row: str(row["text"])),
    "real maths": ("gsm8k_train.jsonl.xz", lambda row: f"{row['question']}\n{row['answer']}\n\n"),
    "real passages": ("squad_v2.0_dev.jsonl.xz", lambda row: json.dumps(row, ensure_ascii=False)),
    "real country records": (
        "factbook_without_africa.jsonl.xz",
        lambda row: json.dumps(row, ensure_ascii=False, indent=1),
    ),
    "real dialogues": ("sgd_dev.jsonl.xz", lambda row: json.dumps(row, ensure_ascii=False)),
    "real slots": ("e2e_cleaned_dev.jsonl.xz", lambda row: json.dumps(row, ensure_ascii=False) + "\n"),
    "real abstracts": ("scitldr_dev.jsonl.xz", lambda row: json.dumps(row, ensure_ascii=False) + "\n"),
    "real tools": ("bfcl/multiple.jsonl.xz", lambda row: json.dumps(row, ensure_ascii=False) + "\n"),
}


def real_text(folder: Path, part: str, each: int, seed: int) -> Iterator[Case]:
    """Stretches of 100 to 32,000 tokens of real files; a row belongs to one part by its hash."""
    for content, (name, read) in _FILES.items():
        path = folder / name
        if not path.exists():
            continue
        rng = random.Random(f"{part} {content} {seed}")
        mine = []
        with lzma.open(path, "rt", encoding="utf-8") as file:
            last = None
            for line in file:
                if content == "real slots" and (known := json.loads(line)["mr"]) == last:
                    continue  # the file holds several wordings of the same facts in a row
                last = known if content == "real slots" else None
                if (hashlib.sha256(line.encode()).digest()[0] % 2 == 0) == (part == "tuning"):
                    mine.append(read(json.loads(line)))
                if sum(map(len, mine[-400:])) > 20_000_000:
                    break
        text = "".join(mine)
        for _ in range(each):
            size = int(100 * 320 ** rng.random()) * CHARACTERS
            begin = rng.randint(0, max(0, len(text) - size))
            yield Case(text[begin : begin + size], 0, False, content, "english")


def every_language(seed: int) -> str:
    """Half of the cases are English."""
    return "english" if seed % 2 else LANGUAGES[1 + seed // 2 % (len(LANGUAGES) - 1)]
