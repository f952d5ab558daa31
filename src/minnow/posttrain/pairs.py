"""Preference pairs from several sampled and one greedy rollout per prompt, judged by a verifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from minnow.data.tokenizer import Tokenizer
from minnow.evaluate.measure import answer_groups, score
from minnow.rollout.records import Engine, Rollout, Sampling
from minnow.tasks import Example, Score, verify


@dataclass(frozen=True)
class PairSettings:
    """How rollouts are drawn and paired.

    Attributes:
        temperatures: one sampled rollout each; a greedy one is added.
        score_gap: least difference of verifier scores in a pair without a loop.
        loop_share: most loop pairs, as a share of all pairs.
        periods_kept: copies of the loop a rejected answer keeps; beyond them the gradient is near zero and the
            length swamps the margin.
        reference: let the worked reference stand as chosen where it scores above every rollout (LFM2 adds one or two
            reference answers to its five samples, arXiv 2511.23404).
    """

    temperatures: tuple[float, ...] = (0.4, 0.6, 0.8, 1.0, 1.0)
    max_new_tokens: int = 384
    score_gap: float = 0.5
    loop_share: float = 0.7
    periods_kept: int = 3
    reference: bool = False


@dataclass
class Pair:
    """Two answers to one prompt, as token ids and with where they come from.

    Attributes:
        kind: ``"loop"`` when the rejected answer loops, else ``"quality"``.
    """

    example: Example
    kind: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    provenance: dict[str, Any] = field(default_factory=dict)

    def as_row(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """TRL's conversational preference format, with provenance columns."""

        def turn(ids: list[int]) -> list[dict[str, str]]:
            ended = ids[-1] in tokenizer.stop_ids
            return [{"role": "assistant", "content": tokenizer.decode(ids[:-1] if ended else ids, keep_special=True)}]

        return {
            "prompt": self.example.messages,
            "chosen": turn(self.chosen_ids),
            "rejected": turn(self.rejected_ids),
            "tools": self.example.tools,
            "kind": self.kind,
            "task": self.example.task,
            "prompt_id": self.example.id,
            **self.provenance,
        }


@dataclass
class PairReport:
    """Pairs and what became of the prompts."""

    pairs: list[Pair]
    prompts: int
    rollouts: int
    all_loop: list[Example]

    def as_dict(self) -> dict[str, int]:
        loops = sum(pair.kind == "loop" for pair in self.pairs)
        return {
            "prompts": self.prompts,
            "rollouts": self.rollouts,
            "pairs": len(self.pairs),
            "loop_pairs": loops,
            "quality_pairs": len(self.pairs) - loops,
            "all_loop_prompts": len(self.all_loop),
        }


def cut_loop(rollout: Rollout, periods: int) -> list[int]:
    """A looping answer up to ``periods`` copies past its onset; any other answer as it is."""
    if rollout.loop is None:
        return rollout.token_ids
    return rollout.token_ids[: rollout.loop.onset + periods * rollout.loop.period]


def choose_pair(
    example: Example, greedy: Rollout, sampled: Sequence[Rollout], settings: PairSettings
) -> tuple[Pair | None, bool]:
    """Best clean answer against a looping one (greedy before sampled), else against the worst beyond the gap.

    Returns:
        The pair, if the rollouts hold one, and whether every rollout loops.
    """
    judged: list[tuple[Rollout, Score]] = [(r, score(example, r)) for r in (greedy, *sampled)]
    clean = [(r, s) for r, s in judged if r.finish_reason == "stop"]
    looping = [r for r, _ in judged if r.finish_reason == "loop"]
    if not clean:
        return None, len(looping) == len(judged)
    best, best_score = max(clean, key=lambda pair: (pair[1].value, pair[0] is not greedy))
    if looping and best_score.value >= settings.score_gap:
        rejected, kind, low = looping[0], "loop", 0.0
    else:
        worst, worst_score = min(judged, key=lambda pair: pair[1].value)
        if best_score.value - worst_score.value < settings.score_gap or not best_score.correct:
            return None, False
        rejected, kind, low = worst, "quality", worst_score.value
    rejected_ids = cut_loop(rejected, settings.periods_kept)
    if not rejected_ids or rejected_ids == best.token_ids:
        return None, False
    provenance = {
        "chosen_score": best_score.value,
        "rejected_score": low,
        "chosen_temperature": best.sampling.temperature,
        "rejected_temperature": rejected.sampling.temperature,
        "rejected_finish": rejected.finish_reason,
        "rejected_onset": rejected.loop.onset if kind == "loop" and rejected.loop else None,
    }
    return Pair(example, kind, best.prompt_ids, best.token_ids, rejected_ids, provenance), False


def prefer_reference(pair: Pair, tokenizer: Tokenizer) -> Pair:
    """The pair with the worked reference as its chosen answer, where that is one turn and scores above the rollout."""
    example = pair.example
    if example.tools or len(example.reference) != 1:
        return pair
    scored = verify(example, example.reference[0]["content"])
    if scored.value <= pair.provenance["chosen_score"]:
        return pair
    ids, mask = tokenizer.conversation([*example.messages, *example.reference])
    chosen = [token for token, trained in zip(ids, mask, strict=True) if trained]
    provenance = pair.provenance | {"chosen_score": scored.value, "chosen_temperature": None}
    return replace(pair, chosen_ids=chosen, provenance=provenance)


def build_pairs(
    engine: Engine, tokenizer: Tokenizer, examples: Sequence[Example], settings: PairSettings, seed: int
) -> PairReport:
    """Roll out every prompt and pair the answers; loop pairs beyond their share are dropped, last ones first."""
    base = Sampling(0.0, settings.max_new_tokens, seed, persistence=0)
    greedy, *arms = answer_groups(
        engine, tokenizer, examples, [base, *(replace(base, temperature=t) for t in settings.temperatures)]
    )
    pairs, all_loop = [], []
    for i, example in enumerate(examples):
        pair, every = choose_pair(example, greedy[i], [arm[i] for arm in arms], settings)
        if pair is not None:
            pairs.append(prefer_reference(pair, tokenizer) if settings.reference else pair)
        if every:
            all_loop.append(example)
    loops = [pair for pair in pairs if pair.kind == "loop"]
    quality = [pair for pair in pairs if pair.kind == "quality"]
    if settings.loop_share < 1:
        # A hair above the quotient: 3 * 0.7 / 0.3 is 7, not 6.999…; and never none at all.
        most = int(len(quality) * settings.loop_share / (1 - settings.loop_share) + 1e-9)
        loops = loops[: max(1, most)]
    return PairReport(loops + quality, len(examples), len(examples) * (1 + len(arms)), all_loop)
