"""Stages that measure a model: measure (tasks and loops), agent and lookups (with and without search)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from minnow.agent import Limits, SearchIndex, run_agent, search_tool
from minnow.agent.lookup_scores import measure_lookups, right
from minnow.errors import UserError
from minnow.evaluate.measure import answer, judge_rollouts, loops_of, measure_loops, score_tasks
from minnow.evaluate.text import held_out_loss, held_out_rows
from minnow.loops import Rate
from minnow.progress import say
from minnow.recipe.context import StageContext
from minnow.recipe.registry import stage, stage_input
from minnow.recipe.schema import Recipe
from minnow.recipe.stages.prompts import digest, prompts_of
from minnow.recipe.stages.sources import CHECKPOINT, check_tasks, checkpoint_world, engine_of, world
from minnow.recipe.stages.texts import held_out_documents
from minnow.recipe.stages.watching import openings
from minnow.recipe.tasks import load_task
from minnow.rollout import Sampling
from minnow.tasks import Example, verify
from minnow.tasks.made_world import make
from minnow.tasks.task import refuse_conversations


@dataclass(frozen=True)
class MeasureSettings:
    """What is measured on held-out prompts.

    Attributes:
        checkpoint: the stage whose model is measured; results carry its name.
        examples: per task, answered greedily; of a user's own prompts all that ``loop_prompts`` are.
        loop_prompts: loop-prone prompts, answered at each temperature.
    """

    checkpoint: str = stage_input()
    tasks: tuple[str, ...] = ()
    examples: int = 100
    loop_prompts: int = 500
    temperatures: tuple[float, ...] = (0.0,)
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        check_tasks(self.tasks)
        for temperature in self.temperatures:
            Sampling(temperature, self.max_new_tokens)
        if self.loop_prompts < 1:
            raise UserError(f"loop_prompts is {self.loop_prompts}; a loop rate needs at least 1 prompt")

    def others(self, recipe: Recipe) -> list[Example]:
        """Examples of the further tasks that the recipe names."""
        found: list[Example] = []
        for name in recipe.data.others:
            task = load_task(name, None, checkpoint_world(recipe), recipe.seed)
            found += task.examples("held_out", self.examples)
        return found

    def contents(self, recipe: Recipe) -> dict[str, str]:
        """A digest of them: what a task's files hold counts, and not its name."""
        return {"data.others": digest(self.others(recipe))} if recipe.data.others else {}


@stage("measure", MeasureSettings, version=2)
def measure(context: StageContext[MeasureSettings]) -> dict[str, Any]:
    """Task scores and doom-loop rates on the held-out split."""
    settings, started = context.settings, time.perf_counter()
    checkpoint = context.output(settings.checkpoint, CHECKPOINT)
    engine, _, words = engine_of(checkpoint)
    drawn = prompts_of(context.recipe)
    examples, prompts = drawn.to_measure(settings.tasks, settings.examples, settings.loop_prompts)
    examples = [*examples, *settings.others(context.recipe)]
    refuse_conversations(examples)
    scores = score_tasks(engine, words, examples, settings.max_new_tokens)
    rates, shown = measure_loops(
        engine, words, prompts, settings.temperatures, settings.max_new_tokens, context.recipe.seed
    )
    return {
        "stage": settings.checkpoint,
        "checkpoint": str(checkpoint),
        "seconds": time.perf_counter() - started,
        "tasks": scores.as_dict(),
        "loops": [rate.as_dict() for rate in rates],
        "examples": shown,
    }


@dataclass(frozen=True)
class AgentSettings:
    """Questions about entities whose pages were never trained on.

    Attributes:
        questions: of each number of hops.
    """

    checkpoint: str = stage_input("merge")
    questions: int = 150
    max_new_tokens: int = 96
    max_calls: int = 4


def _by_hops(examples: list[Example], correct: list[bool]) -> dict[str, dict[str, float]]:
    out = {}
    for hops, name in ((1, "one_hop"), (2, "two_hop")):
        right = [ok for example, ok in zip(examples, correct, strict=True) if example.answer["hops"] == hops]
        out[name] = Rate(sum(right), len(right)).as_dict()
    return out


@stage("agent", AgentSettings)
def agent(context: StageContext[AgentSettings]) -> dict[str, Any]:
    """The same questions with closed book and with the search tool over the whole encyclopaedia."""
    settings = context.settings
    engine, model, words = engine_of(context.output(settings.checkpoint, CHECKPOINT))
    pocket = world(context.recipe)
    sampling = Sampling(0.0, settings.max_new_tokens)
    closed = pocket.examples("question", "held_out", 2 * settings.questions)
    answers = answer(engine, words, closed, sampling)
    closed_right = [verify(e, r.text).correct for e, r in zip(closed, answers, strict=True)]

    index = SearchIndex.build((page.id, page.title, page.text) for page in pocket.pages())
    asked = pocket.examples("search", "held_out", 2 * settings.questions)
    limits = Limits(settings.max_calls, settings.max_new_tokens, max_context=model.config.max_positions)
    traces = run_agent(engine, words, asked, [search_tool(index)], limits, sampling)
    open_right = [verify(e, trace.answer).correct for e, trace in zip(asked, traces, strict=True)]
    shown = sorted(range(len(asked)), key=lambda i: (not open_right[i], -asked[i].answer["hops"], i))[:2]
    wrong = [i for i, right in enumerate(open_right) if not right][:2]
    return {
        "closed_book": _by_hops(closed, closed_right),
        "search": _by_hops(asked, open_right),
        "calls_per_answer": sum(len(trace.calls) for trace in traces) / len(traces),
        "examples": [traces[i].as_dict() | {"correct": open_right[i]} for i in [*shown, *wrong]],
    }


@dataclass(frozen=True)
class LookupsSettings:
    """Questions about a made-up world (:mod:`minnow.tasks.made_world`), answered by search.

    Attributes:
        pages: of the world, whose seed is ``world_seed``.
        each: questions of every kind, but ``injections`` with an injected order.
    """

    checkpoint: str = stage_input("sft")
    world_seed: int = 71
    pages: int = 10_000
    each: int = 100
    injections: int = 500
    max_new_tokens: int = 96
    max_calls: int = 6


@stage("lookups", LookupsSettings, uses=())
def lookups(context: StageContext[LookupsSettings]) -> dict[str, Any]:
    """By hops, under traps and where there is no answer; closed book and with the right pages given, beside."""
    settings = context.settings
    engine, model, words = engine_of(context.output(settings.checkpoint, CHECKPOINT))
    made_up = make(settings.world_seed, settings.pages, settings.each, settings.injections)
    limits = Limits(settings.max_calls, settings.max_new_tokens, max_context=model.config.max_positions)
    made, traces = measure_lookups(engine, words, made_up, SearchIndex.build(made_up.pages), limits)
    answered = zip(made_up.questions, traces, strict=True)
    wrong = [trace for question, trace in answered if not right(question.gold, trace)]
    for kind, found in made["search"].items():
        say(f"{context.name}: {kind} {found['exact']['rate']:.1%} of {found['exact']['total']}")
    return {"pages": len(made_up.pages), **made, "wrong": [trace.as_dict() for trace in wrong[:20]]}


@dataclass(frozen=True)
class MeasureTextSettings:
    """What is measured on held-out documents of a text corpus.

    Attributes:
        rows, row_length: held-out text that bits per byte is taken over.
        prompts: openings of held-out documents that the model continues; ``prompt_tokens`` long.
    """

    checkpoint: str = stage_input("pretrain")
    rows: int = 256
    row_length: int = 256
    prompts: int = 200
    prompt_tokens: int = 48
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        for temperature in self.temperatures:
            Sampling(temperature, self.max_new_tokens)


@stage("measure-text", MeasureTextSettings, version=2)
def measure_text(context: StageContext[MeasureTextSettings]) -> dict[str, Any]:
    """Bits per byte on held-out text, and how often continuations of it loop."""
    settings, started = context.settings, time.perf_counter()
    checkpoint = context.output(settings.checkpoint, CHECKPOINT)
    engine, model, words = engine_of(checkpoint)
    sequences = held_out_documents(context.recipe, words)
    numbers = held_out_loss(
        model, held_out_rows(sequences, words, settings.row_length, settings.rows, context.seed), words
    )
    asked = openings(sequences, words, settings.prompts, settings.prompt_tokens, context.seed)
    prompts = [example for example, _ in asked]
    judged = []
    for temperature in settings.temperatures:
        sampling = Sampling(temperature, settings.max_new_tokens, context.recipe.seed, stop_on_loop=False)
        rollouts = engine.generate([(example.id, ids) for example, ids in asked], sampling)
        judged.append(judge_rollouts(words, prompts, rollouts))
    rates, shown = loops_of(judged)
    return {
        "stage": settings.checkpoint,
        "checkpoint": str(checkpoint),
        "seconds": time.perf_counter() - started,
        "tasks": {},
        "loops": [rate.as_dict() for rate in rates],
        "examples": shown,
        **numbers,
    }
