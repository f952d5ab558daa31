"""IFEval's 25 instructions, strict and loose, on answers judged by hand from the published behaviour."""

from __future__ import annotations

from typing import Any

import pytest

from minnow.tasks.scorers.ifeval import CHECKS, follows, score, sentences
from minnow.tasks.scorers.language import language_of

EN = "this is a plain english sentence that is long enough for anybody to tell the language of it."
Case = tuple[str, dict[str, Any], str, bool, bool]

# instruction, its settings, the answer, followed strictly, followed loosely
CASES: list[Case] = [
    ("keywords:existence", {"keywords": ["sea", "salt"]}, "Salt of the SEA.", True, True),
    ("keywords:existence", {"keywords": ["sea", "salt"]}, "Seaside.", False, False),
    ("keywords:existence", {"keywords": ["sea"]}, "Overseas.", True, True),
    ("keywords:existence", {"keywords": ["sea side"]}, "sea *side*", False, True),
    ("keywords:frequency", {"keyword": "ha", "frequency": 3, "relation": "at least"}, "Haha, ha!", True, True),
    ("keywords:frequency", {"keyword": "ha", "frequency": 3, "relation": "less than"}, "Haha, ha!", False, False),
    ("keywords:frequency", {"keyword": " ha ", "frequency": 2, "relation": "less than"}, "ha\nha", False, True),
    ("keywords:forbidden_words", {"forbidden_words": ["sea"]}, "Overseas seas.", True, True),
    ("keywords:forbidden_words", {"forbidden_words": ["sea"]}, "The Sea.", False, False),
    ("keywords:forbidden_words", {"forbidden_words": ["sea"]}, "Sea\nland", False, True),
    ("keywords:forbidden_words", {"forbidden_words": ["café"]}, "The CAFÉ, then.", False, False),
    ("keywords:letter_frequency", {"letter": "A", "let_frequency": 3, "let_relation": "at least"}, "Banana", True, True),
    ("keywords:letter_frequency", {"letter": "a", "let_frequency": 3, "let_relation": "less than"}, "Banana", False, False),
    ("keywords:letter_frequency", {"letter": "é", "let_frequency": 1, "let_relation": "at least"}, "CAFÉ", True, True),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "at least"}, "Oh! No!", True, True),
    ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}, "It's one-two", True, True),
    ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}, "one two three", False, False),
    ("length_constraints:number_words", {"num_words": 4, "relation": "less than"}, "one, two, three!", True, True),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "Sure:\none two", False, True),
    ("length_constraints:number_words", {"num_words": 2, "relation": "at least"}, "北京 市", True, True),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "One. Two!", True, True),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "Dr. Smith came.", False, False),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}, "He paid 3.50. Why?", True, True),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "One\ntwo\nthree", True, True),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "Sure.\nOne.", False, True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", True, True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\nOne\n***\nTwo\n***", True, True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\n***\nTwo", False, False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n\nTwo", False, False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, "One\n***\nTwo", False, True),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        "One.\n\n\"weekend\" it is.",
        True,
        True,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        "One.\n\nThe weekend.",
        False,
        False,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "two"},
        "One.\n\nTwo.\n\nThree.",
        False,
        True,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "it"},
        "It's.",
        True,
        True,
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [town]", True, True),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name\n] [town]", False, False),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[]", True, True),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. Write.", True, True),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\np. s. write", True, True),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nPS: write", False, False),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S. Write.", True, True),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.S. Write.", False, False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n* two", True, True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "- one\n  * two", True, True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n** two", False, False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n* two\n* three", False, True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "1. one\n2. two", False, False),
    ("detectable_format:constrained_response", {}, " My answer is maybe. \n", True, True),
    ("detectable_format:constrained_response", {}, "I say: My answer is yes.", True, True),
    ("detectable_format:constrained_response", {}, "my answer is yes.", False, False),
    ("detectable_format:constrained_response", {}, "**My answer** is no.", False, True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and *two*", True, True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and * *", False, False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "**one**", True, True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "*one\ntwo*", False, False),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\nA\nSection 2\nB",
        True,
        True,
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "Section 1\nA\nSection 2\nB",
        False,
        False,
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section one\nSection two",
        False,
        False,
    ),
    ("detectable_format:json_format", {}, '{"a": [1, "ä"]}', True, True),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', True, True),
    ("detectable_format:json_format", {}, 'Here:\n{"a": 1}', False, True),
    ("detectable_format:json_format", {}, "{'a': 1}", False, False),
    ("detectable_format:json_format", {}, "5", True, True),
    ("detectable_format:title", {}, "<<Ode>>\nO!", True, True),
    ("detectable_format:title", {}, "<< >>", False, False),
    ("detectable_format:title", {}, "<Ode>", False, False),
    ("detectable_format:title", {}, "<<O\nde>>", False, False),
    ("combination:two_responses", {}, "One\n******\nTwo", True, True),
    ("combination:two_responses", {}, "One\n******\nOne", False, False),
    ("combination:two_responses", {}, "One\n***\nTwo", False, False),
    ("combination:two_responses", {}, "One\n******\nTwo\n******\nThree", False, True),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write a poem."}, "write a POEM. Roses", True, True),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write a poem."}, "Sure!\nWrite a poem. Roses", False, True),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write a poem."}, "Roses", False, False),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, "So. any QUESTIONS?", True, True),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, '"So. Any questions?" ', True, True),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, "Any questions?\nBye.", False, True),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, "Any questions", False, False),
    ("startend:quotation", {}, ' "All of it." ', True, True),
    ("startend:quotation", {}, "“All of it.”", False, False),
    ("startend:quotation", {}, '"', False, False),
    ("startend:quotation", {}, 'Here:\n"All of it."', False, True),
    ("change_case:english_capital", {}, EN.upper(), True, True),
    ("change_case:english_capital", {}, EN.upper() + " x", False, False),
    ("change_case:english_capital", {}, "Sure:\n" + EN.upper(), False, True),
    ("change_case:english_lowercase", {}, EN, True, True),
    ("change_case:english_lowercase", {}, EN.capitalize(), False, False),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "NO way, I say.",
        True,
        True,
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "A WELL-KNOWN fact",
        False,
        False,
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": "less than"},
        "Mixed Case words.",
        True,
        True,
    ),
    ("punctuation:no_comma", {}, "None here.", True, True),
    ("punctuation:no_comma", {}, "One, two.", False, False),
    ("punctuation:no_comma", {}, "Sure, here:\nNone.", False, True),
    ("punctuation:no_comma", {}, "、，", True, True),
    ("language:response_language", {"language": "de"}, "Das ist ein Satz, und er ist nicht auf Englisch geschrieben.", True, True),
    ("language:response_language", {"language": "de"}, EN, False, False),
    ("language:response_language", {"language": "en"}, "12345", True, True),
    ("punctuation:no_comma", {}, "", False, False),
    ("punctuation:no_comma", {}, " \n ", False, False),
]  # fmt: skip


@pytest.mark.parametrize("kind, settings, text, strict, loose", CASES)
def test_instructions(kind: str, settings: dict[str, Any], text: str, strict: bool, loose: bool) -> None:
    empty = {"num_words": None, "language": None} | settings  # as the hub's table has it: every key, mostly null
    found = score({"instruction_id_list": [kind], "kwargs": [empty]}, text)
    assert found.correct is strict and found.metrics["loose"] == float(loose)
    assert follows(kind, text, settings) is strict


def test_every_instruction_is_tried_both_ways() -> None:
    for kind in CHECKS:
        assert {strict for name, _, _, strict, _ in CASES if name == kind} == {True, False}, kind


def test_scores_are_by_prompt_and_by_instruction() -> None:
    answer = {
        "instruction_id_list": ["punctuation:no_comma", "detectable_format:title"],
        "kwargs": [{}, {}],
    }
    found = score(answer, "Sure, here:\n<<Ode>>")
    assert not found.correct and found.value == 0.5 and "no_comma" in found.reason
    assert found.metrics == {"loose": 1.0, "instructions_strict": (1, 2), "instructions_loose": (2, 2)}
    with pytest.raises(ValueError, match="neither 'less than'"):
        follows("length_constraints:number_words", "x", {"num_words": 1, "relation": "at most"})


@pytest.mark.parametrize(
    "text, count",
    [
        ("", 0),
        ("One", 1),
        ("One. Two? Three!", 3),
        ("Mr. J. Smith and Mrs. Jones of Co. X left.", 1),
        ('He said "Go." Then he went.', 2),
        ("It cost $3.50 (approx. four euros). Yes.", 2),
        ("Wait... what? Oh... Well.", 3),
        ("See e.g. Smith et al. for it.", 1),
        ("So did I. Then we left.", 2),
        ("Is it? yes.", 1),
        ("www.a.com is a site. Visit it.", 2),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(sentences(text)) == count, sentences(text)


@pytest.mark.parametrize(
    "code, text",
    [
        ("en", "It was the best of times, and it was the worst of times for all of them."),
        ("es", "El perro no quiere la comida que está en la mesa, pero la gata sí."),
        ("pt", "O menino não quer a comida que está na mesa, mas a gata também não."),
        ("fr", "Le chien ne veut pas la viande qui est sur la table, mais il boit."),
        ("de", "Der Hund will das Futter nicht, das auf dem Tisch steht."),
        ("it", "Il cane non vuole la carne che è sulla tavola, ma il gatto sì."),
        ("pl", "Pies nie chce jeść mięsa, które jest na stole, ale kot się cieszy."),
        ("vi", "Con chó không muốn ăn thịt và con mèo đã ăn rồi."),
        ("sw", "Mbwa hataki chakula ambacho ni cha paka na watu wa nyumba hiyo."),
        ("fi", "Koira ei halua ruokaa, joka on pöydällä, mutta se on hyvää."),
        ("ru", "Собака не хочет есть мясо, которое лежит на столе, но он ест."),
        ("uk", "Собака не хоче їсти м'ясо, що лежить на столі, але він їсть."),
        ("bg", "Кучето не иска да яде месото, което е на масата, но котката ще го изяде."),
        ("ar", "الكلب لا يريد أن يأكل اللحم الذي على الطاولة"),
        ("fa", "سگ نمی خواهد گوشتی را که روی میز است بخورد"),
        ("ur", "کتا وہ گوشت نہیں کھانا چاہتا جو میز پر ہے"),
        ("hi", "कुत्ता मेज़ पर रखा मांस नहीं खाना चाहता है और बिल्ली भी नहीं"),
        ("mr", "कुत्रा टेबलावर असलेले मांस खात नाही आणि मांजर आहे"),
        ("ne", "कुकुरले टेबलमा भएको मासु खान चाहँदैन र बिरालो पनि छ"),
        ("ja", "犬はテーブルの上の肉を食べたくない。"),
        ("ko", "개는 식탁 위의 고기를 먹고 싶어하지 않는다."),
        ("th", "สุนัขไม่อยากกินเนื้อบนโต๊ะ"),
        ("he", "הכלב לא רוצה לאכול את הבשר"),
        ("bn", "কুকুর মাংস খেতে চায় না"),
        ("ta", "நாய் இறைச்சி சாப்பிட விரும்பவில்லை"),
        ("te", "కుక్క మాంసం తినడానికి ఇష్టపడదు"),
        ("kn", "ನಾಯಿ ಮಾಂಸ ತಿನ್ನಲು ಬಯಸುವುದಿಲ್ಲ"),
        ("gu", "કૂતરો માંસ ખાવા માંગતો નથી"),
        ("pa", "ਕੁੱਤਾ ਮਾਸ ਨਹੀਂ ਖਾਣਾ ਚਾਹੁੰਦਾ"),
        ("ml", "നായ മാംസം കഴിക്കാൻ ആഗ്രഹിക്കുന്നില്ല"),
        ("other", "狗不想吃桌子上的肉"),
        (None, "12, 13!"),
        (None, "Zxqv"),
    ],
)
def test_languages(code: str | None, text: str) -> None:
    assert language_of(text) == code
