"""Outputs caught in a loop, of every kind, with the character at which the second copy begins."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from words import Words


@dataclass(frozen=True)
class Case:
    """``content``: the kind of loop, or the type of text that is none. ``onset`` and ``period`` are in characters;
    a period of 0 stands for kinds that have none. The output is ``whole`` without its last ``cut`` characters."""

    whole: str
    cut: int
    loop: bool
    content: str
    language: str
    onset: int = 0
    period: int = 0

    @property
    def text(self) -> str:
        return self.whole[: len(self.whole) - self.cut]


class Made(NamedTuple):
    whole: str
    cut: int
    onset: int
    period: int


def between_words(text: str, cut: int) -> int:
    """``cut``, or up to 24 characters more so as to cut no word in two: rules that compare whole words see the tail that
    they would have seen a token earlier. Longer runs, such as digits or Chinese, are cut where they are."""
    for more in range(24):
        size = len(text) - cut - more
        if not cut or size < 1 or not (text[size - 1].isalnum() and text[size].isalnum()):
            return cut + more
    return cut


CHARACTERS = 5  # of one token, for lengths asked for in tokens


def _opening(w: Words, tokens: int) -> str:
    """Ordinary text before the loop, never more than 40% of the whole."""
    rng = w.rng
    words = rng.randint(5, max(6, int(0.4 * tokens * rng.random() ** 2) + 8))
    text = w.prose(words)
    if rng.random() < 0.2:
        text += "\n\n" + "\n".join(f"- {w.phrase(4)}" for _ in range(min(12, 1 + words // 20)))
    if rng.random() < 0.25:
        text = "<think>\n" + text
    return text + rng.choice([" ", "\n", "\n\n"])


def _filled(w: Words, tokens: int, copy: Callable[[int], str], least: int, opening: str | None = None) -> Made:
    """An opening and copies up to the length asked for, cut anywhere; ``least`` copies."""
    before = _opening(w, tokens) if opening is None else opening
    copies = [copy(0), copy(1)]
    size = len(before) + sum(map(len, copies))
    while size < tokens * CHARACTERS or len(copies) < least:
        copies.append(copy(len(copies)))
        size += len(copies[-1])
    text = before + "".join(copies)
    cut = w.rng.randint(0, max(0, min(len(copies[-1]), len(text) // 50)))
    return Made(text, between_words(text, cut), len(before) + len(copies[0]), len(copies[0]))


def token(w: Words, tokens: int) -> Made:
    rng = w.rng
    kind = rng.random()
    if kind < 0.6:
        unit, least = w.word() + w.joint, 70
    elif kind < 0.75:
        unit, least = rng.choice(["\n", "\n\n", "<br>"] if w.part == "tuning" else ["\n", " \n", "&nbsp;"]), 150
    elif kind < 0.9:
        unit, least = rng.choice("!.-=" if w.part == "tuning" else "?*_#"), 400
    else:
        unit, least = rng.choice("0123456789"), 900
    return _filled(w, tokens, lambda _: unit, least)


def short_period(w: Words, tokens: int) -> Made:
    rng = w.rng
    words = rng.randint(2, 22)
    kind = rng.random()
    if kind < 0.6:
        unit = w.sentence(words) + rng.choice([" ", "\n", "\n\n"])
    elif kind < 0.8:
        unit = w.phrase(words) + ", "
    else:
        unit = f"- **{w.name()}**: {w.phrase(words)}\n"
    return _filled(w, tokens, lambda _: unit, max(7, 80 // (words + 1)))


def long_period(w: Words, tokens: int) -> Made:
    rng = w.rng
    most = max(40, min(1800, tokens // 5))
    words = int(40 * (most / 40) ** rng.random())
    kind = rng.random()
    if kind < 0.7:
        unit = w.prose(words) + rng.choice([" ", "\n\n"])
    elif kind < 0.85:
        unit = f"## {w.name()}\n" + "".join(f"- {w.phrase(5)}\n" for _ in range(1 + words // 7)) + "\n"
    else:
        body = "".join(f"    {w.name().lower()} = {w.name().lower()}({w.number()})\n" for _ in range(1 + words // 8))
        unit = f"def {w.name().lower()}(x):\n{body}    return x\n\n"
    return _filled(w, tokens, lambda _: unit, 5)


def near_copy(w: Words, tokens: int) -> Made:
    rng = w.rng
    words = rng.randint(10, max(14, min(300, tokens // 8)))
    base = w.prose(words).replace("\n\n", " ").split(" ") if w.joint else list(w.prose(words))
    rate, moves = rng.uniform(0.01, 0.08), rng.random() < 0.5

    def copy(_: int) -> str:
        out = []
        for each in base:
            if rng.random() >= rate:
                out.append(each)
                continue
            action = rng.choice(["replace", "drop", "insert"]) if moves else "replace"
            if action != "drop":
                out += [w.word()] if action == "replace" else [each, w.word()]
        return w.joint.join(out) + (w.joint or "\n")

    return _filled(w, tokens, copy, max(8, 300 // words))


_COUNTERS = {
    "tuning": [
        "Step {i}: {a}, so we try {j} and {b}.\n",
        "{i}. {a} {b}.\n",
        "I will check the case {i} now. {a}. ",
        "Let n = {i}. Then {a} and {b}.\n",
        "Wait, what about {i}? {a}, {b}. So we try {j}. ",
        "    layer_{i} = build({a_id}, name='{b_id}_{i}')\n",
    ],
    "held-out": [
        "Attempt {i}: {a}. That fails, {b}, go to attempt {j}.\n",
        "({i}) {a} {b};\n",
        "Consider the number {i}; {a}. Not this one. ",
        "Day {i}: {a}, then {b}.\n",
        "Hmm, perhaps {i}: {a}? No, {b}. Next is {j}. ",
        '    result{i} = process(result{h}, {a_id}, mode="{b_id}")\n',
    ],
}


def counter(w: Words, tokens: int) -> Made:
    rng = w.rng
    template = rng.choice(_COUNTERS[w.part])
    a, b = w.phrase(rng.randint(3, 9)), w.phrase(rng.randint(3, 9))
    a, b = (" ".join(t for t in x.split(" ") if not t.isdigit()) or w.name() for x in (a, b))
    a_id, b_id = w.name().lower(), w.name().lower()
    first, step = rng.randint(1, 300), rng.choice([1, 1, 1, 2, 5])

    def copy(k: int) -> str:
        i = first + k * step
        return template.format(i=i, j=i + step, h=i - step, a=a, b=b, a_id=a_id, b_id=b_id)

    return _filled(w, tokens, copy, 24)


def shuffled(w: Words, tokens: int) -> Made:
    rng = w.rng
    pool = [w.sentence(rng.randint(5, 14)) for _ in range(rng.randint(3, 6))]
    numbered, close = rng.random() < 0.3, rng.choice([" ", "\n"])
    if numbered:
        close = "\n"
    lead = "{}. " if w.part == "tuning" else "Step {}: "

    def copy(k: int) -> str:
        return (lead.format(k + 1) if numbered else "") + rng.choice(pool) + close

    return _filled(w, tokens, copy, 60)._replace(period=0)


_HEDGES = {
    "tuning": ["Wait, ", "Hmm, ", "But ", "So ", "Actually, ", "Let me check: ", ""],
    "held-out": ["Hold on, ", "OK, ", "However, ", "Then again, ", "I think ", "Alternatively, ", ""],
}


def paraphrase(w: Words, tokens: int) -> Made:
    """Two to four statements in turn, each time in another of its wordings: synonyms, hedges, halves swapped."""
    rng = w.rng
    statements = []
    for _ in range(rng.randint(2, 4)):
        slots = [rng.sample(w.content, rng.randint(1, 3)) for _ in range(rng.randint(5, 9))]
        joints = [rng.choice(w.function) for _ in slots]
        wordings = []
        for _ in range(rng.randint(3, 5)):
            words = [t for slot, joint in zip(slots, joints, strict=True) for t in (rng.choice(slot), joint)]
            if rng.random() < 0.3:
                words = words[len(words) // 2 :] + words[: len(words) // 2]
            wordings.append(w.joint.join(words))
        statements.append(wordings)

    def copy(k: int) -> str:
        return rng.choice(_HEDGES[w.part]) + rng.choice(statements[k % len(statements)]) + w.stop + " "

    return _filled(w, tokens, copy, 60)._replace(period=0)


def enumeration(w: Words, tokens: int) -> Made:
    """A list of different items that decays onto one item, or onto two in turn."""
    rng = w.rng
    form = rng.choice(
        ["{i}. {x}\n", "- {x}\n", "{x}, ", "{i}) {x}\n"]
        if w.part == "tuning"
        else ["{i}. **{x}**\n", "* {x}\n", "{x}; ", "{i} - {x}\n"]
    )
    words = rng.randint(1, 5)

    def item() -> str:
        return w.name() if words == 1 else w.name() + w.joint + w.phrase(words - 1)

    good = rng.randint(5, max(6, min(400, int(0.4 * tokens) // (words + 3))))
    before = _opening(w, min(tokens, 150)) + "".join(form.format(i=i + 1, x=item()) for i in range(good))
    last = [item() for _ in range(rng.choice([1, 1, 2]))]

    def copy(k: int) -> str:
        return "".join(form.format(i=good + 1 + k * len(last) + j, x=x) for j, x in enumerate(last))

    return _filled(w, tokens, copy, 36, before)


def _call(w: Words, form: int, name: str, arguments: dict[str, object], result: object) -> str:
    if form == 0:
        call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        return f"<tool_call>\n{call}\n</tool_call>\n<tool_response>\n{json.dumps(result, ensure_ascii=False)}\n</tool_response>\n"
    if form == 1:
        listed = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
        return (
            f"<|tool_call_start|>[{name}({listed})]<|tool_call_end|>"
            f"<|tool_response_start|>{json.dumps(result, ensure_ascii=False)}<|tool_response_end|>"
        )
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<|python_tag|>{call}<|eom_id|><|start_header_id|>ipython<|end_header_id|>\n\n{json.dumps(result, ensure_ascii=False)}<|eot_id|>"


def tool_calls(w: Words, tokens: int) -> Made:
    """The same one to three calls again and again, with the same results but for request ids and keys in other order."""
    rng = w.rng
    form, stamped, talk = rng.randrange(3), rng.random() < 0.4, rng.random() < 0.5
    calls = []
    for _ in range(rng.randint(1, 3)):
        arguments: dict[str, object] = {w.name().lower(): w.phrase(3), "limit": rng.randint(1, 50)}
        calls.append((w.name().lower() + "_" + w.name().lower(), arguments, w.sentence()))

    def copy(k: int) -> str:
        out = w.sentence(6) + "\n" if talk else ""
        for name, arguments, result in calls:
            items = list(arguments.items())
            rng.shuffle(items)
            answer: dict[str, object] = {"error": result}
            if stamped:
                answer["request_id"] = "".join(rng.choices("0123456789abcdef", k=16))
                answer["time"] = (
                    f"2026-03-{rng.randint(10, 28)}T{rng.randint(10, 23)}:{rng.randint(10, 59)}:{rng.randint(10, 59)}Z"
                )
            out += _call(w, form, name, dict(items), answer)
        return out

    return _filled(w, tokens, copy, 5)


# Kind, and the fewest tokens at which it can be told.
POSITIVES: dict[str, tuple[Callable[[Words, int], Made], int]] = {
    "token": (token, 100),
    "short period": (short_period, 100),
    "long period": (long_period, 300),
    "near-copy": (near_copy, 300),
    "counter": (counter, 250),
    "shuffled": (shuffled, 400),
    "paraphrase": (paraphrase, 800),
    "enumeration": (enumeration, 200),
    "tool calls": (tool_calls, 300),
}


def positive(kind: str, part: str, language: str, seed: int) -> Case:
    rng = random.Random(f"{part} {kind} {seed}")
    make, least = POSITIVES[kind]
    tokens = int(least * (32_000 / least) ** rng.random())
    made = make(Words(part, language, rng), tokens)
    return Case(made.whole, made.cut, True, kind, language, made.onset, made.period)
