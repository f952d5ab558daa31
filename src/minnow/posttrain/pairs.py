"""Preference pairs from several sampled and one greedy rollout per prompt, judged by verifiers and a jury."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from minnow.data.duplicates import near_duplicates
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.evaluate.measure import answer_groups, score
from minnow.loops import Loop
from minnow.posttrain.journal import Journal
from minnow.posttrain.jury import Case, Judge, JudgeRecord, Ratings, convene
from minnow.rollout.records import Engine, Rollout, Sampling
from minnow.tasks import Example, Score, judge
from minnow.tasks.given import is_open

PROMPTS_AT_ONCE = 256
"""Prompts whose answers are decoded together, and kept together."""


@dataclass(frozen=True)
class PairSettings:
    """How rollouts are drawn and paired.

    Attributes:
        temperatures: one sampled rollout each; a greedy one is added.
        score_gap: least difference of the scores (0 to 1) in a pair without a loop, and least score of a chosen answer.
        loops_first: reject a looping rollout wherever there is one, the greedy before the sampled ones; otherwise only
            where it is the worst by score, as any other.
        loop_share: most loop pairs, as a share of all pairs.
        periods_kept: copies of the loop a rejected answer keeps; beyond them the gradient is near zero and the
            length swamps the margin.
        agreement: least share of the jury's ratings that must put chosen above rejected, where it has graded both.
        overlap: pairs whose prompt and chosen answer share so much of their words with an earlier pair's are left out.
        reference: let the worked reference stand as chosen where it scores above every rollout (LFM2 adds one or two
            reference answers to its five samples, arXiv 2511.23404).
    """

    temperatures: tuple[float, ...] = (0.4, 0.6, 0.8, 1.0, 1.0)
    max_new_tokens: int = 384
    score_gap: float = 0.5
    loops_first: bool = True
    loop_share: float = 0.7
    periods_kept: int = 3
    agreement: float = 0.75
    overlap: float = 0.8
    reference: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.loop_share <= 1 or not 0 <= self.agreement <= 1 or self.periods_kept < 1:
            raise UserError(
                f"loop_share is {self.loop_share:g}, agreement {self.agreement:g} and periods_kept {self.periods_kept}; "
                "shares lie between 0 and 1, and at least 1 period is kept"
            )
        for temperature in self.temperatures:
            Sampling(temperature, self.max_new_tokens)


@dataclass(frozen=True)
class Candidate:
    """One rollout and what is thought of it.

    Attributes:
        score: 0 to 1: the verifier's value, or the jury's grade of a prompt without a verifier.
        correct: whether it may be chosen.
        rated: its place among the answers that the jury graded; None where it did not.
        grade: the jury's, which decides between equal scores.
    """

    rollout: Rollout
    score: float
    correct: bool
    rated: int | None = None
    grade: float = 0.0

    @property
    def loops(self) -> bool:
        return self.rollout.finish_reason == "loop"


@dataclass
class Pair:
    """Two answers to one prompt, as token ids and with where they come from.

    Attributes:
        kind: ``"loop"`` when the rejected answer loops, else ``"quality"``.
        onset: where in the rejected answer its loop begins.
    """

    example: Example
    kind: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    provenance: dict[str, Any] = field(default_factory=dict)
    onset: int | None = None

    def as_row(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """TRL's conversational preference format, with provenance columns."""

        def turn(ids: list[int]) -> list[dict[str, str]]:
            ended = ids[-1] in tokenizer.stop_ids
            return [{"role": "assistant", "content": tokenizer.decode(ids[:-1] if ended else ids, keep_special=True)}]

        before = self.rejected_ids[: self.onset or 0]
        begins = None if self.onset is None else len(tokenizer.decode(before, keep_special=True))
        return {
            "prompt": self.example.messages,
            "chosen": turn(self.chosen_ids),
            "rejected": turn(self.rejected_ids),
            "tools": self.example.tools,
            "kind": self.kind,
            "task": self.example.task,
            "prompt_id": self.example.id,
            **self.provenance,
            "rejected_onset_character": begins,
        }


@dataclass
class PairReport:
    """Pairs and what became of the prompts.

    Attributes:
        all_loop: prompts all of whose answers loop: preference cannot help there, worked examples can.
        fates: how many prompts gave a pair, and why the others did not.
        judges: each judge's record.
    """

    pairs: list[Pair]
    prompts: int
    rollouts: int
    all_loop: list[Example]
    fates: Counter[str] = field(default_factory=Counter)
    judges: dict[str, JudgeRecord] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        loops = sum(pair.kind == "loop" for pair in self.pairs)
        return {
            "prompts": self.prompts,
            "rollouts": self.rollouts,
            "pairs": len(self.pairs),
            "loop_pairs": loops,
            "quality_pairs": len(self.pairs) - loops,
            "all_loop_prompts": len(self.all_loop),
            "fates": dict(self.fates),
            "judges": {name: record.as_dict() for name, record in self.judges.items()},
        }


def cut_loop(rollout: Rollout, periods: int) -> list[int]:
    """A looping answer up to ``periods`` copies past its onset; any other answer as it is."""
    if rollout.loop is None:
        return rollout.token_ids
    return rollout.token_ids[: rollout.loop.onset + periods * rollout.loop.period]


PAIRED, NO_CLEAN, ALL_LOOP = "pair", "no answer ends by itself", "every answer loops"
POOR, NO_GAP, DISPUTED = "no answer is good enough", "no answer is worse by the gap", "the jury disagrees"
REPEATED, OVER_SHARE = "much like an earlier pair", "beyond the share of loop pairs"


def choose_pair(
    example: Example, candidates: Sequence[Candidate], settings: PairSettings, ratings: Ratings | None = None
) -> tuple[Pair | None, str]:
    """The best clean answer against a looping one, else against the worst beyond the gap.

    Args:
        candidates: the greedy one first.

    Returns:
        The pair, if the rollouts hold one, and what became of the prompt.
    """
    clean = [each for each in candidates if each.rollout.finish_reason == "stop"]
    looping = [each for each in candidates if each.loops]
    if not clean:
        return None, ALL_LOOP if len(looping) == len(candidates) else NO_CLEAN
    best = max(clean, key=lambda each: (each.score, each.grade, each is not candidates[0]))
    worst = min(candidates, key=lambda each: (each.score, each.grade))
    if looping and settings.loops_first and best.score >= settings.score_gap:
        worst = looping[0]
    elif not best.correct:
        return None, POOR
    elif best.score - worst.score < settings.score_gap and best.grade - worst.grade < settings.score_gap:
        return None, NO_GAP
    if ratings is not None and best.rated is not None and worst.rated is not None:
        agreement: float | None = ratings.agreement(best.rated, worst.rated)
    else:
        agreement = None
    if agreement is not None and agreement < settings.agreement:
        return None, DISPUTED
    rejected = cut_loop(worst.rollout, settings.periods_kept) if worst.loops else worst.rollout.token_ids
    if not rejected or rejected == best.rollout.token_ids:
        return None, NO_GAP
    loop = worst.rollout.loop if worst.loops else None
    onset = None if loop is None else loop.onset
    provenance = {
        "chosen_score": best.score,
        "rejected_score": worst.score,
        "chosen_grade": best.grade,
        "rejected_grade": worst.grade,
        "agreement": agreement,
        "chosen_temperature": best.rollout.sampling.temperature,
        "rejected_temperature": worst.rollout.sampling.temperature,
        "seed": best.rollout.sampling.seed,
        "rejected_finish": worst.rollout.finish_reason,
        "loop_kind": loop and loop.kind,
        "loop_period": loop and loop.period,
        "rejected_onset": onset,
    }
    kind = "quality" if loop is None else "loop"
    pair = Pair(example, kind, best.rollout.prompt_ids, best.rollout.token_ids, rejected, provenance, onset)
    return pair, PAIRED


def prefer_reference(pair: Pair, tokenizer: Tokenizer) -> Pair:
    """The pair with the worked reference as its chosen answer, where that is one turn and scores above the rollout."""
    example = pair.example
    if example.tools or len(example.reference) != 1:
        return pair
    scored = judge(example, example.reference[0]["content"])
    if scored.value <= pair.provenance["chosen_score"]:
        return pair
    ids, mask = tokenizer.conversation([*example.messages, *example.reference])
    chosen = [token for token, trained in zip(ids, mask, strict=True) if trained]
    provenance = pair.provenance | {"chosen_score": scored.value, "chosen_temperature": None}
    return replace(pair, chosen_ids=chosen, provenance=provenance)


def build_pairs(
    engine: Engine,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    settings: PairSettings,
    seed: int,
    judges: Sequence[Judge] = (),
    kept: Journals | None = None,
) -> PairReport:
    """Roll out every prompt and pair the answers; loop pairs beyond their share are dropped, last ones first.

    Args:
        judges: grade the answers to prompts without a verifier, and decide between answers that one thinks equal.
            Without any, open prompts are scored by the rules.
        kept: answers and grades that were there before, and where new ones go.

    Raises:
        UserError: as the engine and the judges; what came before is kept.
    """
    kept = kept or Journals(Journal(None, {}), Journal(None, {}))
    groups = list(_rollouts(engine, tokenizer, examples, settings, seed, kept))
    scored = [[score(example, rollout) for rollout in group] for example, group in zip(examples, groups, strict=True)]
    places = [_to_grade(*each, bool(judges)) for each in zip(examples, groups, scored, strict=True)]
    cases = [
        Case(example.id, example.messages, [group[i].text for i in chosen])
        for example, group, chosen in zip(examples, groups, places, strict=True)
        if chosen
    ]
    ratings, records = convene(judges, cases, kept.grades, seed, kept.judged)
    fates: Counter[str] = Counter()
    pairs, all_loop = [], []
    for example, group, scores, chosen in zip(examples, groups, scored, places, strict=True):
        rated = ratings.get(example.id)
        candidates = _candidates(example, group, scores, chosen, rated, bool(judges))
        pair, fate = choose_pair(example, candidates, settings, rated)
        fates[fate] += 1
        if pair is not None:
            pairs.append(prefer_reference(pair, tokenizer) if settings.reference else pair)
        elif fate == ALL_LOOP:
            all_loop.append(example)
    pairs = _within_share(_without_repeats(pairs, tokenizer, settings, fates), settings, fates)
    return PairReport(pairs, len(examples), sum(map(len, groups)), all_loop, fates, records)


@dataclass
class Journals:
    """Where rollouts and grades are kept; ``answered`` and ``judged`` are told of prompts and requests as they end."""

    rollouts: Journal
    grades: Journal
    answered: Callable[[int], None] = lambda count: None
    judged: Callable[[int], None] = lambda count: None


def _rollouts(
    engine: Engine,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    settings: PairSettings,
    seed: int,
    kept: Journals,
) -> Iterator[list[Rollout]]:
    """The greedy and the sampled answers to each prompt; a batch that is not whole in the journal is asked anew."""
    held = {(row["prompt_id"], row["arm"]): row for row in kept.rollouts.rows}
    for place, start in enumerate(range(0, len(examples), PROMPTS_AT_ONCE)):
        batch = examples[start : start + PROMPTS_AT_ONCE]
        base = Sampling(0.0, settings.max_new_tokens, seed + place, persistence=0)
        arms = [base, *(replace(base, temperature=t) for t in settings.temperatures)]
        if all((example.id, arm) in held for example in batch for arm in range(len(arms))):
            for example in batch:
                ids = tokenizer.prompt(example.messages, example.tools)
                yield [_restored(held[example.id, number], ids, arm) for number, arm in enumerate(arms)]
        else:
            answers = list(zip(*answer_groups(engine, tokenizer, batch, arms), strict=True))
            kept.rollouts.append([_row(arm, rollout) for group in answers for arm, rollout in enumerate(group)])
            yield from map(list, answers)
        kept.answered(len(batch))


def _row(arm: int, rollout: Rollout) -> dict[str, Any]:
    return {
        "prompt_id": rollout.prompt_id,
        "arm": arm,
        "temperature": rollout.sampling.temperature,
        "seed": rollout.sampling.seed,
        "finish_reason": rollout.finish_reason,
        "loop": None if rollout.loop is None else asdict(rollout.loop),
        "token_ids": rollout.token_ids,
        "text": rollout.text,
    }


def _restored(row: dict[str, Any], prompt_ids: list[int], sampling: Sampling) -> Rollout:
    loop = None if row["loop"] is None else Loop(**row["loop"])
    ids, text, reason = row["token_ids"], row["text"], row["finish_reason"]
    return Rollout(row["prompt_id"], prompt_ids, ids, text, reason, sampling, loop=loop)


def _to_grade(example: Example, group: Sequence[Rollout], scores: Sequence[Score], jury: bool) -> list[int]:
    """Places of the answers that the jury is asked about: different ones that end, of a verifier's only the best."""
    clean = [i for i, rollout in enumerate(group) if rollout.finish_reason == "stop"]
    if not jury or not clean:
        return []
    if not is_open(example):
        best = max(scores[i].value for i in clean)
        clean = [i for i in clean if scores[i].value == best]
    different = list({group[i].text: i for i in reversed(clean)}.values())
    return sorted(different) if is_open(example) or len(different) > 1 else []


def _candidates(
    example: Example,
    group: Sequence[Rollout],
    scores: Sequence[Score],
    graded: Sequence[int],
    ratings: Ratings | None,
    jury: bool,
) -> list[Candidate]:
    """The rollouts with their scores; of an open prompt that a jury was to grade and did not, none may be chosen."""
    texts = {group[i].text: place for place, i in enumerate(graded)}
    out = []
    for rollout, scored in zip(group, scores, strict=True):
        ended = rollout.finish_reason == "stop"
        place = texts.get(rollout.text) if ended and ratings is not None else None
        grade = 0.0 if place is None or ratings is None else ratings.grade(place)
        value, correct = scored.value, scored.correct
        if jury and is_open(example):
            value, correct = grade, place is not None and grade >= 0.5
        out.append(Candidate(rollout, value, correct, place, grade))
    return out


def _without_repeats(
    pairs: Sequence[Pair], tokenizer: Tokenizer, settings: PairSettings, fates: Counter[str]
) -> list[Pair]:
    texts = [f"{pair.example.messages[-1]['content']} {tokenizer.decode(pair.chosen_ids)}" for pair in pairs]
    repeated = set(near_duplicates(texts, settings.overlap))
    _count(fates, REPEATED, len(repeated))
    return [pair for place, pair in enumerate(pairs) if place not in repeated]


def _within_share(pairs: Sequence[Pair], settings: PairSettings, fates: Counter[str]) -> list[Pair]:
    loops = [pair for pair in pairs if pair.kind == "loop"]
    quality = [pair for pair in pairs if pair.kind == "quality"]
    if settings.loop_share < 1:
        # A hair above the quotient: 3 * 0.7 / 0.3 is 7, not 6.999…; and never none at all.
        most = max(1, int(len(quality) * settings.loop_share / (1 - settings.loop_share) + 1e-9))
        _count(fates, OVER_SHARE, max(0, len(loops) - most))
        loops = loops[:most]
    return loops + quality


def _count(fates: Counter[str], fate: str, number: int) -> None:
    """Prompts whose pair was dropped afterwards."""
    if number:
        fates[PAIRED] -= number
        fates[fate] += number
