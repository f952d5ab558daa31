"""Search for the best architecture within a device's budget, by measuring on it.

Size and memory first, which cost nothing; then an additive model of latency from a measured block table; then quality, by a
prior or by short training with successive halving; then whole-model measurements of the finalists, with random weights.
Every measurement is kept in a journal, so that a search that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from minnow.device.block_table import BLOCKS, BlockTable, fit_table, table_designs
from minnow.device.design_space import Budget, Design, Fitting, Space, fitting, too_large
from minnow.device.hypervolume import by_hypervolume, dominated_volume, pareto
from minnow.device.journal import Journal
from minnow.device.machine import describe_machine, load_average
from minnow.device.timing import Speed, time_shapes
from minnow.errors import UserError
from minnow.model.config import Attention
from minnow.model.presets import PRESETS
from minnow.progress import say, track
from minnow.train.memory import free_memory

Quality = Literal["none", "proxy", "train"]
_ANSWER = 24  # tokens decoded for a measurement
_FINALISTS = 4
_PER_SHARE = 2  # candidates for training from each share of attention layers
_LFM2 = PRESETS["lfm2-350m"]
_PUBLISHED = (_LFM2.num_layers, sum(isinstance(layer.mixer, Attention) for layer in _LFM2.layers))
"""Layers, and attention layers among them, of the published layout that has the form of the designs."""


@dataclass(frozen=True)
class Train:
    """Short training of designs.

    Attributes:
        digest: of all but design and tokens that a loss depends on: the text, its tokens, the seed.
        losses: place and loss of each of several designs after so many tokens, as they finish.
    """

    digest: str
    losses: Callable[[Sequence[Design], int], Iterable[tuple[int, float]]]


@dataclass(frozen=True)
class Measuring:
    """How designs are timed."""

    threads: int = 1
    repeats: int = 5


def measured(
    wanted: Sequence[Design], budget: Budget, journal: Journal, how: Measuring, label: str
) -> dict[Design, dict[str, float]]:
    """Each design whole, with random weights under llama.cpp: ``ttft_ms``, ``token_ms``, ``memory`` (bytes above the
    host process, whose own memory is not the model's), ``spread``, ``cpu_share``."""
    asked = [budget.ttft_tokens, budget.decode_depth, budget.context, asdict(how), describe_machine()["cpu"]]
    found = {one: known for one in wanted if (known := journal.known("measure", asdict(one), *asked)) is not None}
    prompts = list(dict.fromkeys([budget.ttft_tokens, budget.decode_depth]))
    groups: dict[tuple[str, int], list[Design]] = {}  # within which names are unique
    for one in dict.fromkeys(wanted):
        if one not in found:
            groups.setdefault((one.kind, one.kernel), []).append(one)
    if groups:
        with track(sum(map(len, groups.values())), label, "models") as bar:
            for (kind, _), group in groups.items():
                for turns in _taking_turns(group, budget.context):
                    part = {one.name: one for one in turns}
                    speeds = time_shapes(
                        {name: one.config() for name, one in part.items()}, prompts, _ANSWER, how.repeats, how.threads,
                        kind=kind, positions=budget.context, decoded=[budget.decode_depth],
                    )  # fmt: skip
                    for name, one in part.items():
                        value = _values(speeds[name], budget, prompts)
                        found[one] = journal.keep(value, "measure", asdict(one), *asked)
                    bar.advance(len(part))
    return {one: found[one] for one in wanted}


def _taking_turns(wanted: Sequence[Design], context: int) -> Iterator[list[Design]]:
    """As many at a time as half of the free memory holds: a machine's speed drifts within minutes, and what is measured
    in turns is slowed alike."""
    room = free_memory(torch.device("cpu")) // 2
    part: list[Design] = []
    for one in wanted:
        if part and sum(each.memory(context) for each in [*part, one]) > room:
            yield part
            part = []
        part.append(one)
    yield part


def _values(speeds: Sequence[Speed], budget: Budget, prompts: Sequence[int]) -> dict[str, float]:
    first, last = speeds[prompts.index(budget.ttft_tokens)], speeds[prompts.index(budget.decode_depth)]
    return {
        "ttft_ms": first.ttft_ms,
        "token_ms": last.token_ms,
        "memory": max(each.peak_bytes - each.before_bytes for each in speeds),
        "spread": max(each.spread for each in speeds),
        "cpu_share": min(each.cpu_share for each in speeds),
    }


def block_tables(
    kept: Sequence[Design], budget: Budget, journal: Journal, how: Measuring
) -> dict[tuple[int, str], BlockTable]:
    """A table for every width and type among ``kept``."""
    groups: dict[tuple[int, str], list[Design]] = {}
    for one in kept:
        groups.setdefault((one.width, one.kind), []).append(one)
    wanted = {group: table_designs(members) for group, members in groups.items()}
    times = measured([one for group in wanted.values() for one in group], budget, journal, how, "block table")
    return {
        group: fit_table(*group, budget.context, [(one, times[one]) for one in ones]) for group, ones in wanted.items()
    }


@dataclass
class Candidate:
    """A design and what is known of it; ``loss`` is the trained one, else the prior."""

    design: Design
    ttft_ms: float
    token_ms: float
    memory: int
    loss: float

    def point(self) -> tuple[float, ...]:
        """To be made small: loss, milliseconds a token, bytes."""
        return (self.loss, self.token_ms, float(self.memory))


def search(
    space: Space, budget: Budget, journal: Journal, how: Measuring, quality: Quality, train: Train | None, tokens: int
) -> dict[str, Any]:
    """Run the search; what is in the journal is not measured again.

    Args:
        quality: ``train`` asks ``train`` for the losses of nine to eleven candidates at ``tokens`` tokens, of the better half
            at twice that, and so on to four; ``proxy`` ranks by :meth:`Design.prior`; ``none`` by latency and memory.

    Returns:
        ``winner`` and ``finalists`` (design, predicted and measured times and memory, loss), ``front`` (all that no
        other beats), ``limits`` (name, asked, winner's, designs cut), ``blocks`` (costs by width), ``errors``.

    Raises:
        UserError: a limit that no design meets; the sentence says which and by how much.
    """
    load = load_average()
    fits = fitting(space, budget)
    say(f"{len(fits.kept):,} designs fit size and memory; measuring their blocks")
    tables = block_tables(fits.kept, budget, journal, how)
    candidates = _within_limits(fits, tables, budget)
    say(f"{len(candidates):,} of them are fast and small enough here")
    # The corner from which hypervolumes are measured: the budget where it is one, else the worst candidate.
    corner = _corner(candidates, budget)
    front = [candidates[place] for place in pareto([one.point() for one in candidates])]
    short = _shortlist(candidates, corner, quality)
    rungs: list[dict[str, Any]] = []
    if quality == "train" and train is not None:
        short, rungs = _halved(short, journal, train, tokens)
        corner = (1.02 * max(one.loss for one in short), *corner[1:])
    order = by_hypervolume([one.point() for one in short], corner, _FINALISTS)
    finalists = [short[place] for place in order]
    whole = measured([one.design for one in finalists], budget, journal, how, "finalists")
    entries = [_entry(one, whole[one.design]) for one in finalists]
    passing = [entry for entry in entries if _meets(entry["measured"], budget)] or entries
    points = [(e["loss"], e["measured"]["token_ms"], float(e["measured"]["memory"])) for e in passing]
    winner = passing[by_hypervolume(points, corner, 1)[0]]
    return {
        "machine": describe_machine(),
        "load_average": load,
        "threads": how.threads,
        "budget": asdict(budget),
        "quality": quality,
        "winner": winner,
        "finalists": entries,
        "front": [_entry(one, None) for one in sorted(front, key=lambda one: one.token_ms)],
        "hypervolume": dominated_volume(
            [tuple(x / c for x, c in zip(one.point(), corner, strict=True)) for one in short], (1.0, 1.0, 1.0)
        ),
        "limits": _limits(fits, candidates, winner, budget),
        "blocks": [
            {
                "width": table.width,
                "type": table.kind,
                "ttft_ms": dict(zip(BLOCKS, table.ttft.tolist(), strict=True)),
                "token_ms": dict(zip(BLOCKS, table.token.tolist(), strict=True)),
                "fit_errors": table.errors,
            }
            for table in tables.values()
        ],
        "rungs": rungs,
        "errors": {
            name: max(abs(e["predicted"][name] / e["measured"][name] - 1) for e in entries)
            for name in ("ttft_ms", "token_ms", "memory")
        },
    }


def _within_limits(fits: Fitting, tables: dict[tuple[int, str], BlockTable], budget: Budget) -> list[Candidate]:
    made = []
    for one in fits.kept:
        ttft, token = tables[one.width, one.kind].predict(one)
        memory = tables[one.width, one.kind].memory(one, budget.context)
        made.append(Candidate(one, ttft, token, memory, one.prior()))
    small = [one for one in made if one.memory <= budget.memory]
    if not small:
        raise UserError(too_large({one.design: one.memory for one in made}, budget))
    fast = [one for one in small if budget.decode is None or 1e3 / one.token_ms >= budget.decode]
    if not fast:
        best = min(small, key=lambda one: one.token_ms)
        assert budget.decode is not None
        raise UserError(
            f"no design meets --decode {budget.decode:g}: the fastest within size and memory, {best.design.name}, decodes "
            f"{1e3 / best.token_ms:.1f} tokens/s after {budget.decode_depth} tokens, "
            f"{1 - 1e3 / best.token_ms / budget.decode:.0%} less; lower --decode or --params, or allow more --threads"
        )
    quick = [one for one in fast if budget.ttft_ms is None or one.ttft_ms <= budget.ttft_ms]
    if not quick:
        best = min(fast, key=lambda one: one.ttft_ms)
        assert budget.ttft_ms is not None
        raise UserError(
            f"no design meets --ttft {budget.ttft_ms:g}ms@{budget.ttft_tokens}: the quickest within the other limits, "
            f"{best.design.name}, takes {best.ttft_ms:.0f} ms, {best.ttft_ms / budget.ttft_ms - 1:.0%} more; raise --ttft, "
            "or lower --params"
        )
    fits.cut.update(
        {"memory": len(made) - len(small), "decode": len(small) - len(fast), "ttft": len(fast) - len(quick)}
    )
    return quick


def _corner(candidates: Sequence[Candidate], budget: Budget) -> tuple[float, ...]:
    slowest = max(one.token_ms for one in candidates) if budget.decode is None else 1e3 / budget.decode
    return (1.02 * max(one.loss for one in candidates), 1.001 * slowest, 1.001 * budget.memory)


def _shortlist(candidates: list[Candidate], corner: tuple[float, ...], quality: Quality) -> list[Candidate]:
    """For training, the best by hypervolume under the prior of every share of attention layers, which the prior knows
    nothing of, and the best with as many layers of each kind as LFM2, whose authors' search trained more than this one
    can; otherwise the best of all."""
    if quality == "none":
        candidates = [Candidate(one.design, one.ttft_ms, one.token_ms, one.memory, 1.0) for one in candidates]
        corner = (1.02, *corner[1:])
    groups: dict[float, list[Candidate]] = {}
    for one in candidates:
        share = round(8 * one.design.attention_layers / one.design.depth) / 8 if quality == "train" else 0.0
        groups.setdefault(share, []).append(one)
    count = _PER_SHARE if quality == "train" else 2 * _FINALISTS
    kept = [one for group in groups.values() for one in _strongest(group, corner, count)]
    if quality == "train":
        known = [one for one in candidates if (one.design.depth, one.design.attention_layers) == _PUBLISHED]
        kept += [one for one in _strongest(known, corner, 1) if one not in kept]
    return kept


def _strongest(group: list[Candidate], corner: tuple[float, ...], count: int) -> list[Candidate]:
    # Exact hypervolumes of thousands of points are slow, and a beaten one never comes first.
    strong = [group[place] for place in pareto([one.point() for one in group])]
    return [strong[place] for place in by_hypervolume([one.point() for one in strong], corner, count)]


def _halved(
    short: list[Candidate], journal: Journal, train: Train, tokens: int
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """Train all on ``tokens``, the better half on twice as many, and so on to two; all that reached the last rung but one
    stay, with the loss of the longest training that all of them had."""
    rungs: list[dict[str, Any]] = []
    alive = short
    while True:
        losses = _trained([one.design for one in alive], journal, train, tokens)
        for one in alive:
            one.loss = losses[one.design]
        alive = sorted(alive, key=lambda one: one.loss)
        rungs.append({"tokens": tokens, "losses": {one.design.name: one.loss for one in alive}})
        if len(alive) <= _FINALISTS:
            return alive, rungs
        alive, tokens = alive[: max(_FINALISTS, len(alive) // 2)], 2 * tokens


def _trained(wanted: Sequence[Design], journal: Journal, train: Train, tokens: int) -> dict[Design, float]:
    """Losses after ``tokens`` tokens. A network is trained once: neither the file's type nor the design's vocabulary
    reaches it."""

    def asked(one: Design) -> tuple[Any, ...]:
        return ("train", train.digest, asdict(one) | {"vocab": 0, "kind": ""}, tokens)

    networks: dict[Design, Design] = {}
    for one in wanted:
        networks.setdefault(replace(one, vocab=0, kind=""), one)
    missing = [one for one in networks.values() if journal.known(*asked(one)) is None]
    with track(len(networks), f"training on {tokens:,} tokens", "designs", done=len(networks) - len(missing)) as bar:
        for place, loss in train.losses(missing, tokens):
            journal.keep(loss, *asked(missing[place]))
            bar.advance(1)
    return {one: journal.known(*asked(one)) for one in wanted}


def _entry(one: Candidate, whole: dict[str, float] | None) -> dict[str, Any]:
    predicted = {"ttft_ms": one.ttft_ms, "token_ms": one.token_ms, "memory": one.memory}
    return {
        "name": one.design.name,
        "design": asdict(one.design),
        "parameters": one.design.parameters,
        "embedding_share": one.design.vocab * one.design.width / one.design.parameters,
        "loss": one.loss,
        "predicted": predicted,
        "measured": whole,
    }


def _meets(found: dict[str, float], budget: Budget) -> bool:
    return (
        (budget.decode is None or 1e3 / found["token_ms"] >= budget.decode)
        and (budget.ttft_ms is None or found["ttft_ms"] <= budget.ttft_ms)
        and found["memory"] <= budget.memory
    )


def _limits(
    fits: Fitting, candidates: Sequence[Candidate], winner: dict[str, Any], budget: Budget
) -> list[dict[str, Any]]:
    """Every limit: what was asked, what the winner has, how many designs it cut after those before it."""
    held = winner["measured"]
    rows: list[dict[str, Any]] = [
        {"limit": "params", "asked": list(budget.params), "winner": winner["parameters"]},
        {"limit": "memory", "asked": budget.memory, "winner": held["memory"]},
    ]
    if budget.decode is not None:
        rows.append({"limit": "decode", "asked": budget.decode, "winner": 1e3 / held["token_ms"]})
    if budget.ttft_ms is not None:
        rows.append({"limit": "ttft", "asked": budget.ttft_ms, "winner": held["ttft_ms"]})
    return [row | {"cut": fits.cut[row["limit"]], "left": len(candidates)} for row in rows]
