"""SQuAD's exact match and F1 against values worked out by hand from evaluate-v1.1 and evaluate-v2.0."""

from __future__ import annotations

import pytest

from minnow.tasks.scorers.squad import exact_match, f1, normalised, score, score_v2

# prediction, answer, exact match, F1 (v1.1)
PAIRS = [
    ("Denver Broncos", "Denver Broncos", True, 1.0),
    ("denver broncos", "Denver Broncos", True, 1.0),
    ("The Denver Broncos", "Denver Broncos", True, 1.0),
    ("the broncos", "Denver Broncos", False, 2 / 3),
    ("Broncos Denver", "Denver Broncos", False, 1.0),
    ("Denver  Broncos ", "Denver\nBroncos", True, 1.0),
    ("Denver Broncos.", "Denver Broncos", True, 1.0),
    ('"Denver Broncos!"', "Denver Broncos", True, 1.0),
    ("Denver-Broncos", "Denver Broncos", False, 0.0),
    ("Denver-Broncos", "DenverBroncos", True, 1.0),
    ("an apple", "apple", True, 1.0),
    ("a", "the", True, 0.0),
    ("", "", True, 0.0),
    ("", "apple", False, 0.0),
    ("apple", "", False, 0.0),
    ("!?", "the", True, 0.0),
    ("theatre", "atre", False, 0.0),
    ("the theatre", "theatre", True, 1.0),
    ("a.b.c", "abc", True, 1.0),
    ("U.S.", "US", True, 1.0),
    ("u.s.a.", "USA", True, 1.0),
    ("AN A THE", "", True, 0.0),
    ("1,000", "1000", True, 1.0),
    ("$12", "12", True, 1.0),
    ("12%", "12 %", True, 1.0),
    ("12 km", "12", False, 2 / 3),
    ("12km", "12 km", False, 0.0),
    ("1973", "in October 1973", False, 0.5),
    ("October 1973", "in October 1973", False, 0.8),
    ("in October of 1973", "October 1973", False, 2 / 3),
    ("it is what it is", "it is", False, 4 / 7),
    ("it it it", "it", False, 0.5),
    ("it", "it it it", False, 0.5),
    ("x y z", "p q", False, 0.0),
    ("São Paulo", "são paulo", True, 1.0),
    ("Sao Paulo", "São Paulo", False, 0.5),
    ("Éire", "éire", True, 1.0),
    ("STRASSE", "straße", False, 0.0),
    ("“Broncos”", "Broncos", False, 0.0),
    ("don’t", "dont", False, 0.0),
    ("don't", "dont", True, 1.0),
    ("–5", "5", False, 0.0),
    ("-5", "5", True, 1.0),
    ("3.5", "35", True, 1.0),
    ("naïve the café", "naïve café", True, 1.0),
    ("北京", "北京", True, 1.0),
    ("北京 市", "北京市", False, 0.0),
    ("a b a c", "b c", True, 1.0),
    ("the a-team", "ateam", True, 1.0),
    ("A's", "as", True, 1.0),
    ("and/or", "andor", True, 1.0),
    ("one\ttwo", "one two", True, 1.0),
    ("one\u00a0two", "one two", True, 1.0),
    ("theﬁrst", "theﬁrst", True, 1.0),
    ("Queen Elizabeth II of the UK", "Elizabeth II", False, 4 / 7),
]


@pytest.mark.parametrize("prediction, answer, exact, overlap", PAIRS)
def test_pairs(prediction: str, answer: str, exact: bool, overlap: float) -> None:
    assert exact_match(prediction, answer) is exact
    assert f1(prediction, answer) == pytest.approx(overlap)
    if normalised(prediction) and normalised(answer):
        assert f1(prediction, answer, version=2) == pytest.approx(overlap)


def test_the_best_of_the_answers_counts() -> None:
    found = score(["in the city of Paris", "Paris, France"], "paris")
    assert not found.correct and found.value == pytest.approx(2 / 3) and found.metrics["f1"] == found.value
    assert score(["in Paris", "Paris"], "Paris.").correct


# answers (none: unanswerable), prediction, exact, F1 (v2.0)
SECOND = [
    ([], "", True, 1.0),
    ([], "unanswerable", True, 1.0),
    ([], "Unanswerable.", True, 1.0),
    ([], "It is unanswerable", False, 0.0),
    ([], "Paris", False, 0.0),
    ([], "the", True, 1.0),
    (["Paris"], "", False, 0.0),
    (["Paris"], "unanswerable", False, 0.0),
    (["Paris", "the"], "a", False, 0.0),
    (["the"], "", True, 1.0),
    (["Paris"], "Paris", True, 1.0),
    (["in Paris", "Paris"], "in Paris France", False, 0.8),
]


@pytest.mark.parametrize("answers, prediction, exact, overlap", SECOND)
def test_version_2(answers: list[str], prediction: str, exact: bool, overlap: float) -> None:
    found = score_v2(answers, prediction)
    assert found.correct is exact and found.value == pytest.approx(overlap)
    assert ("no_answer" in found.metrics) == (not any(normalised(each) for each in answers))
