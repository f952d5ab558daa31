"""IFEval: 25 kinds of instructions a program can check, strict and loose (Zhou et al. 2023, arXiv 2311.07911).

Written anew from the published behaviour. Strict: the answer as it is. Loose: also without its first line, without its
last, without both, each also without asterisks; one of the eight that follows is enough. An empty answer follows nothing.
Scores are by prompt (all of its instructions) and by instruction, pooled.

Three checks ask for a linguistic library in the original; here a sentence ends at ``.!?`` before white space, but not
after an initial or a common abbreviation (punkt there); words in capitals are counted with hyphens inside (NLTK's
tokens there); a language is told as in :mod:`minnow.tasks.scorers.language` (langdetect there).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from minnow.tasks.scorers.language import language_of
from minnow.tasks.types import Score

_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATIONS = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "st",
        "jr",
        "sr",
        "vs",
        "etc",
        "inc",
        "ltd",
        "co",
        "corp",
        "no",
        "fig",
        "vol",
        "capt",
        "col",
        "gen",
        "lt",
        "rev",
        "hon",
        "e.g",
        "i.e",
        "a.m",
        "p.m",
        "u.s",
        "ph.d",
    ]
)
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)")


def score(answer: Mapping[str, Any], text: str) -> Score:
    """``answer`` holds ``instruction_id_list`` and ``kwargs``, a mapping for each instruction; correct is strict."""
    kinds, settings = answer["instruction_id_list"], answer["kwargs"]
    strict = [follows(kind, text, given) for kind, given in zip(kinds, settings, strict=True)]
    readings = loose_readings(text)
    loose = [any(follows(kind, each, given) for each in readings) for kind, given in zip(kinds, settings, strict=True)]
    ignored = [kind for kind, followed in zip(kinds, strict, strict=True) if not followed]
    return Score.of(
        not ignored,
        f"not followed: {', '.join(ignored)}",
        sum(strict) / len(strict),
        loose=float(all(loose)),
        instructions_strict=(sum(strict), len(strict)),
        instructions_loose=(sum(loose), len(loose)),
    )


def loose_readings(text: str) -> list[str]:
    """The eight forms of an answer of which one that follows is enough."""
    lines = text.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [form for each in (text, *cut) for form in (each, each.replace("*", ""))]


def follows(kind: str, text: str, settings: Mapping[str, Any]) -> bool:
    """Whether a text follows one instruction.

    Raises:
        KeyError: no such kind, or a setting that it needs is missing.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    return bool(text.strip()) and CHECKS[kind](text, given)


def _compared(count: int, given: Mapping[str, Any], relation: str, threshold: str) -> bool:
    """ "less than" or "at least" a threshold."""
    if given[relation] not in ("less than", "at least"):
        raise ValueError(f"{relation} is {given[relation]!r}, neither 'less than' nor 'at least'")
    return count < given[threshold] if given[relation] == "less than" else count >= given[threshold]


def sentences(text: str) -> list[str]:
    """The sentences of a text; a line end alone ends none."""
    found, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        before = text[start : end.start()].split()
        word = before[-1].lstrip("(\"'“‘[").casefold() if before else ""
        following = text[end.end() :].lstrip()[:1]
        stops = end[0].startswith(".") and not end[0].startswith("..")
        if stops and (word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha() and word != "i")):
            continue
        if following.islower():
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    return [each for each in [*found, text[start:].strip()] if each]


def _language(text: str, given: Mapping[str, Any]) -> bool:
    return language_of(text) in (given["language"], None)


def _existence(text: str, given: Mapping[str, Any]) -> bool:
    return all(re.search(keyword, text, re.IGNORECASE) for keyword in given["keywords"])


def _frequency(text: str, given: Mapping[str, Any]) -> bool:
    count = len(re.findall(given["keyword"].strip(), text, re.IGNORECASE))
    return _compared(count, given, "relation", "frequency")


def _forbidden(text: str, given: Mapping[str, Any]) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in given["forbidden_words"])


def _letters(text: str, given: Mapping[str, Any]) -> bool:
    count = text.lower().count(given["letter"].strip().lower())
    return _compared(count, given, "let_relation", "let_frequency")


def _paragraphs(text: str, given: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in text.split("***")]
    inner = parts[1:-1]
    return all(inner) and sum(map(bool, parts)) == given["num_paragraphs"]


def _words(text: str, given: Mapping[str, Any]) -> bool:
    return _compared(len(re.findall(r"\w+", text)), given, "relation", "num_words")


def _sentences(text: str, given: Mapping[str, Any]) -> bool:
    return _compared(len(sentences(text)), given, "relation", "num_sentences")


def _first_word(text: str, given: Mapping[str, Any]) -> bool:
    parts, place = text.split("\n\n"), given["nth_paragraph"]
    count = sum(bool(part.strip()) for part in parts)
    if count != given["num_paragraphs"] or place > count or not parts[place - 1].strip():
        return False
    word = parts[place - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == given["first_word"].lower()


def _postscript(text: str, given: Mapping[str, Any]) -> bool:
    marker = given["postscript_marker"].strip()
    patterns = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return re.search(patterns.get(marker, marker.lower()), text.lower()) is not None


def _placeholders(text: str, given: Mapping[str, Any]) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= given["num_placeholders"]


def _bullets(text: str, given: Mapping[str, Any]) -> bool:
    """Lines that begin with ``*`` (not ``**``) or ``-``; white space before it may span lines."""
    stars = re.findall(r"^\s*\*[^*].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == given["num_bullets"]


def _title(text: str, given: Mapping[str, Any]) -> bool:
    return any(each.strip("<>").strip() for each in re.findall(r"<<[^\n]+>>", text))


def _choice(text: str, given: Mapping[str, Any]) -> bool:
    return any(each in text for each in _CHOICES)


def _highlights(text: str, given: Mapping[str, Any]) -> bool:
    single = [each.strip("*") for each in re.findall(r"\*[^\n*]*\*", text)]
    double = [each[2:-2] for each in re.findall(r"\*\*[^\n*]*\*\*", text)]
    return sum(bool(each.strip()) for each in single + double) >= given["num_highlights"]


def _sections(text: str, given: Mapping[str, Any]) -> bool:
    return len(re.findall(rf"{given['section_spliter'].strip()}\s?\d+", text)) >= given["num_sections"]


def _json(text: str, given: Mapping[str, Any]) -> bool:
    body = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        body = body.removeprefix(fence)
    try:
        json.loads(body.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _repeats(text: str, given: Mapping[str, Any]) -> bool:
    return text.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


def _two_responses(text: str, given: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in text.split("******")]
    said = [part for part in parts if part]
    return all(parts[1:-1]) and len(said) == 2 and said[0] != said[1]


def _capitals(text: str, given: Mapping[str, Any]) -> bool:
    return text.isupper() and language_of(text) in ("en", None)


def _lowercase(text: str, given: Mapping[str, Any]) -> bool:
    return text.islower() and language_of(text) in ("en", None)


def _capital_words(text: str, given: Mapping[str, Any]) -> bool:
    count = sum(word.isupper() for word in re.findall(r"\w+(?:[-./]\w+)*", text))
    return _compared(count, given, "capital_relation", "capital_frequency")


def _ending(text: str, given: Mapping[str, Any]) -> bool:
    return text.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def _quotation(text: str, given: Mapping[str, Any]) -> bool:
    body = text.strip()
    return len(body) > 1 and body[0] == body[-1] == '"'


def _no_comma(text: str, given: Mapping[str, Any]) -> bool:
    return "," not in text


CHECKS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _choice,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ending,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _capitals,
    "change_case:english_lowercase": _lowercase,
    "punctuation:no_comma": _no_comma,
}
