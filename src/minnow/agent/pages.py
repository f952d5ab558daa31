"""Pages as text: HTML, PDF, plain text in whatever encoding, and the passages of them that matter to a question."""

from __future__ import annotations

import codecs
import html
import io
import math
import re
from collections import Counter
from dataclasses import dataclass

from minnow.agent.index import words_of
from minnow.errors import UserError

MOST_CHARACTERS = 2_000_000
PASSAGE = 400
"""Characters of a passage: a few sentences."""

_SKIPPED = {"script", "style", "noscript", "template", "nav", "footer", "aside", "svg", "iframe", "button", "select"}
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_BREAKS = {
    "p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article", "header", "table", "ul", "ol", "pre",
    "blockquote", "dt", "dd", "hr", "main", "figure", "figcaption", "caption", "title",
}  # fmt: skip
_META = re.compile(rb"<meta[^>]{1,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
# A comment, a tag, or a declaration. No part of it reads past the next "<", so that a page is read once.
_MARKUP = re.compile(
    r"""<!--.*?(?:-->|\Z)|<(?P<slash>/?)(?P<name>[a-z][^\s/<>]*+)"""
    r"""(?P<attributes>(?:[^<>"']++|"[^"<]*+"|'[^'<]*+')*+(?=>)|[^<>]*+)(?:>|(?=<)|\Z)|<[!?/][^<>]*+>?""",
    re.DOTALL | re.IGNORECASE,
)
_ATTRIBUTE = re.compile(r"""(?P<name>[^\s=/"']++)(?:\s*+=\s*+(?P<value>"[^"]*+"?|'[^']*+'?|[^\s"']++))?""")
_UNSEEN = re.compile(r"display\s*+:\s*+none|visibility\s*+:\s*+hidden", re.IGNORECASE)
_RAW = {tag: re.compile(rf"</{tag}", re.IGNORECASE) for tag in ("script", "style")}  # what stands in them is no markup
_HUGE = re.compile(r"&#(?:[0-9]{8,}+|[xX][0-9a-fA-F]{7,}+);?")  # no character, and more digits than Python reads
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*")


class PageError(Exception):
    """A page that cannot be read: one sentence that says why."""


@dataclass(frozen=True)
class Page:
    """A page as text; ``cut`` where there was more of it."""

    url: str
    title: str
    text: str
    cut: bool = False


@dataclass(frozen=True)
class Passage:
    """``text`` stands in its page from character ``start`` to ``end``."""

    start: int
    end: int
    text: str


def page_of(url: str, body: bytes, kind: str = "", charset: str | None = None, cut: bool = False) -> Page:
    """The text of a page.

    Args:
        kind: its media type; without one it is told from the name and the content.

    Raises:
        PageError: a PDF without text or one that is damaged, or bytes that are no text.
        UserError: a PDF, and pypdf is not installed.
    """
    if kind == "application/pdf" or body[:5] == b"%PDF-":
        return _pdf(url, body, cut)
    if body[:2048].count(0) > 4 and not body.startswith(tuple(mark for mark, _ in _MARKS)):
        raise PageError("it is not a page of text.")
    text = decoded(body, charset)
    cut = cut or len(text) > MOST_CHARACTERS
    text = text[:MOST_CHARACTERS]
    if "html" in kind or (not kind.startswith("text/plain") and _looks_like_html(text)):
        title, text = html_text(text)
        return Page(url, title or url, text, cut)
    return Page(url, _first_line(text) or url, text.strip(), cut)


def decoded(body: bytes, charset: str | None = None) -> str:
    """Bytes as text: by their byte order mark, what the server or the page says, UTF-8, else Windows-1252.

    What an encoding cannot say becomes U+FFFD.
    """
    for mark, name in _MARKS:
        if body.startswith(mark):
            return body.decode(name, "replace")
    said = _META.search(body[:4096])
    for encoding in (charset, said[1].decode("ascii") if said else None, "utf-8"):
        try:
            if encoding and codecs.lookup(encoding)._is_text_encoding:  # not base64 or rot13
                # A page that was cut may end in half a character.
                return codecs.getincrementaldecoder(encoding)().decode(body)
        except (LookupError, UnicodeError):
            continue
    return body.decode("cp1252", "replace")


def html_text(source: str) -> tuple[str, str]:
    """Title and readable text of HTML, however broken; no scripts, styles or menus.

    In time that is linear in the source's length, which Python's own parser does not promise: it reads the rest of a page
    again for each of a hostile one's tags that do not end.
    """
    reader, place = _Reader(), 0
    while (mark := _MARKUP.search(source, place)) is not None:
        reader.text(source[place : mark.start()])
        slash, name, attributes = mark.group("slash", "name", "attributes")
        place = mark.end()
        if name is None:  # a comment, or a declaration
            continue
        name = name.lower()
        if slash:
            reader.end(name)
            continue
        reader.start(name, attributes)
        if (closing := _RAW.get(name)) is not None:
            found = closing.search(source, place)
            place = found.start() if found is not None else len(source)
    reader.text(source[place:])
    text = re.sub(r"[^\S\n]+", " ", "".join(reader.parts))
    return " ".join(reader.title.split()), re.sub(r"\s*\n\s*", "\n", text).strip()


class _Reader:
    """What a reader sees of tags and texts that come in order."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.title = ""
        self._skip: list[str] = []  # what is open and not seen
        self._skipped = Counter[str]()
        self._in_title = False

    def start(self, tag: str, attributes: str) -> None:
        # What a reader does not see is no part of the page: it is where instructions to models hide.
        unseen = any(
            found["name"].lower() == "hidden"
            or (found["name"].lower() == "style" and _UNSEEN.search(found["value"] or ""))
            for found in _ATTRIBUTE.finditer(attributes)
        )
        if tag not in _VOID and (tag in _SKIPPED or unseen or self._skipped[tag]):
            self._skip.append(tag)
            self._skipped[tag] += 1
        self._in_title = tag == "title" and not self._skip
        if tag in _BREAKS:
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append(" ")

    def end(self, tag: str) -> None:
        open_still = self._skipped[tag]
        while self._skipped[tag] and self._skipped[tag] == open_still:
            self._skipped[self._skip.pop()] -= 1
        self._in_title = False
        if tag in _BREAKS:
            self.parts.append("\n")

    def text(self, source: str) -> None:
        if self._skip or not source:
            return
        said = html.unescape(_HUGE.sub("\ufffd", source))
        if self._in_title and not self.title:
            self.title = said[:300]
        else:
            self.parts.append(said)


def _looks_like_html(text: str) -> bool:
    return re.search(r"<(?:!doctype html|html|head|body|div|p|article)\b", text[:2000], re.IGNORECASE) is not None


def _first_line(text: str) -> str:
    line = next((each.strip(" #\t") for each in text[:2000].splitlines() if each.strip(" #\t")), "")
    return line[:120]


def _pdf(url: str, body: bytes, cut: bool) -> Page:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise UserError(f"{url} is a PDF; to read those: pip install 'minnow[search]'") from error
    if cut:
        raise PageError("it is a PDF that is too large to fetch.")
    try:
        reader = PdfReader(io.BytesIO(body))
        parts: list[str] = []
        for page in reader.pages:
            parts.append(page.extract_text())
            if sum(map(len, parts)) > MOST_CHARACTERS:
                break
        title = str(reader.metadata.title or "") if reader.metadata else ""
    except (PyPdfError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OSError) as error:
        raise PageError(f"it is a PDF that cannot be read ({type(error).__name__}).") from error
    text = "\n".join(parts).strip()
    if not text:
        raise PageError("it is a PDF without text; perhaps its pages are pictures.")
    text = text.encode("utf-8", "replace").decode("utf-8")
    return Page(url, title.strip() or _first_line(text) or url, text[:MOST_CHARACTERS], len(text) > MOST_CHARACTERS)


def passages(text: str, length: int = PASSAGE) -> list[Passage]:
    """``text`` in passages of whole sentences, up to ``length`` characters; longer sentences are cut."""
    found: list[Passage] = []
    start = end = 0
    for stop in [*(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]:
        if stop - start > length and end > start:
            found.append(Passage(start, end, text[start:end]))
            start = end
        while stop - start > length:
            found.append(Passage(start, start + length, text[start : start + length]))
            start += length
        end = stop
    found.append(Passage(start, end, text[start:end]))
    return [each for each in found if each.text.strip()]


def best_passages(text: str, query: str, budget: int, title: str = "") -> list[Passage]:
    """The passages that say most about ``query``, in the order of the page, of at most ``budget`` characters in all.

    They are ranked by BM25 among the page's own passages; words of the title count nothing, as they fit all of them. A query
    without a hit gives the page's beginning.
    """
    pieces = passages(text, min(PASSAGE, budget))
    asked = set(words_of(query)) - set(words_of(title)) or set(words_of(query))
    counts = [Counter(words_of(piece.text)) for piece in pieces]
    holding = Counter(word for count in counts for word in asked & count.keys())
    mean = sum(count.total() for count in counts) / max(1, len(counts))

    def score(count: Counter[str]) -> float:
        total = 0.0
        for word in asked & count.keys():
            rarity = math.log(1 + (len(pieces) - holding[word] + 0.5) / (holding[word] + 0.5))
            total += rarity * count[word] * 2.2 / (count[word] + 1.2 * (0.25 + 0.75 * count.total() / mean))
        return total

    scores = [score(count) for count in counts]
    chosen: list[int] = []
    left = budget
    for place in sorted(range(len(pieces)), key=lambda place: (-scores[place], place)):
        if (scores[place] > 0 or not holding) and len(pieces[place].text) <= left:
            chosen.append(place)
            left -= len(pieces[place].text)
    return [pieces[place] for place in sorted(chosen)]
