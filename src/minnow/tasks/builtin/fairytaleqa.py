"""FairytaleQA: questions about the sections of a story (Xu et al. 2022), scored by ROUGE-L against up to six answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minnow.data.table import Row
from minnow.tasks.scorers import rouge, squad
from minnow.tasks.task import drafts_of
from minnow.tasks.types import Draft, Score

needs = rouge.require


def _questions(row: Row) -> Iterator[Draft]:
    texts = {str(each["section"]): each["text"] for each in row.values["sections"]}
    for asked in row.values["questions"]:
        said = [asked.get(f"answer{number}") or "" for number in range(1, 7)]
        answers = list(dict.fromkeys(each.strip() for each in said if each.strip()))
        if not answers:
            raise ValueError(f"question {asked['question_id']} has no answer")
        places = [place.strip() for place in str(asked["cor_section"]).split(",")]
        passage = "\n\n".join(" ".join(texts[place].split()) for place in places)
        prompt = (
            f"{passage}\n\nQuestion: {asked['question'].strip()}\nAnswer briefly, in the story's words where you can."
        )
        yield Draft.plain(prompt, answers[0], answers, id=f"{row.values['story']}-{asked['question_id']}")


def score(answers: Sequence[str], text: str) -> Score:
    """The value is the best ROUGE-L F1, as published; correct is SQuAD's exact match, since ROUGE draws no line."""
    matched = squad.score(answers, text)
    best = max(rouge.scores(each, text)["rougeL"] for each in answers)
    return Score.of(matched.correct, matched.reason, best, rouge_l=best, f1=matched.value)


read = drafts_of(_questions)
