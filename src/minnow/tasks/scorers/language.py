"""Which of IFEval's thirty languages a text is in, by its script, its letters and its commonest words.

IFEval asks ``langdetect``; this looks at far less and knows only whole texts, not words. Where nothing speaks for a
language the answer is None, which IFEval counts as followed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_SCRIPTS = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "THAI": "th",
    "HEBREW": "he",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "MALAYALAM": "ml",
}
# Commonest words, and letters that only some languages of a script have: a point for each time one comes.
_WORDS = {
    "LATIN": {
        "en": "the of and to in is that it for was you with are this be on have not he she his her they my as at by",
        "es": "el la de que y en los las un una es por con para se del lo como pero más su no está al",
        "pt": "o a de que e em os as um uma é por com para não se do da no na mais como mas ao são",
        "fr": "le la les de et en un une est que des du dans pour qui ne pas sur au avec ce il je nous vous",
        "de": "der die das und ist in den von zu mit sich des auf für nicht ein eine dem es im auch ich wir",
        "it": "il la di che e un una è per con non sono del della i gli le si da nel al come ma più",
        "pl": "w i na z się nie do to jest że o jak ale po od przez są który dla co",
        "vi": "và của là có không được một trong cho người các những với để này khi đã tôi",
        "sw": "na ya wa kwa ni katika la za hii kuwa watu yake hiyo lakini kama pia sana",
        "fi": "ja on ei se että hän oli mutta kun ovat olla myös tai niin joka mitä minä sinä",
    },
    "CYRILLIC": {
        "ru": "и в не на что с как это но он по из для они было",
        "uk": "і та що не на з це як але він до для вони було",
        "bg": "и на да в се за не от с е са ще като но това които при",
    },
    "ARABIC": {
        "ar": "في من على أن إلى هذا التي الذي مع كان عن لا ما",
        "fa": "و در به از که این را با است برای آن های",
        "ur": "اور کے میں کی ہے سے کا کو نے پر",
    },
    "DEVANAGARI": {
        "hi": "है के में की और को का से हैं यह पर नहीं कि एक",
        "mr": "आहे आणि या ची चा च्या मध्ये हे ते होते नाही आहेत",
        "ne": "छ र को मा छन् हो यो पनि गर्न भएको तर लाई हुन्छ",
    },
}
_LETTERS = {
    "es": "ñ¿¡", "pt": "ãõç", "de": "äöüß", "pl": "ąęłśźżćń", "vi": "ăâđêôơưạảấầậắằặẹẻẽếềệ", "fi": "äö",
    "ru": "ыэё", "uk": "їієґ", "bg": "ъ", "ar": "ةىأإ", "fa": "پچژگ", "ur": "ٹڈڑںےہھ", "mr": "ळ",
}  # fmt: skip


def language_of(text: str) -> str | None:
    """An ISO 639-1 code, ``other`` for a script of none of the languages, or None without any evidence."""
    scripts = Counter(unicodedata.name(letter, "?").split()[0].split("-")[0] for letter in text if letter.isalpha())
    if not scripts:
        return None
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > scripts.total() / 10:
        return "ja"
    script = scripts.most_common(1)[0][0]
    if script not in _WORDS:
        return _SCRIPTS.get(script, "other")
    words = Counter(re.findall(r"[^\W\d_]+(?:[\u0900-\u0903\u093a-\u094f]+[^\W\d_]*)*", text.lower()))
    letters = Counter(text.lower())
    points = {
        code: sum(words[each] for each in set(common.split())) + sum(letters[each] for each in _LETTERS.get(code, ""))
        for code, common in _WORDS[script].items()
    }
    best = max(points, key=lambda code: points[code])
    return best if points[best] else None
