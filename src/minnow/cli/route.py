"""``minnow route``: which way a request would take, and why; and a probe that tells good local answers from bad ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from minnow.cli.eval import prepare
from minnow.cli.output import AsJson, Threads, columns, emit, names_in
from minnow.cli.text_models import NO_SERVER, TextModel, ask, open_text_model, survey_settings
from minnow.errors import UserError
from minnow.evaluate.measure import score_text
from minnow.evaluate.survey import ending_of, questions, read_answers
from minnow.rollout import TorchEngine
from minnow.rollout.scoring import hidden_states
from minnow.rollout.text_engine import ChatPrompt, LocalTextEngine
from minnow.serve.personal import personal_data
from minnow.serve.policy import Facts, choose, load_policy, reconsider, threshold_of
from minnow.serve.probe import auroc, fit_probe, summary
from minnow.tasks import Example


def explain(
    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")],
    /,
    policy: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    route: Annotated[
        Literal["auto", "local", "search", "cloud"], tyro.conf.arg(metavar="auto|local|search|cloud")
    ] = "auto",
    private: bool = False,
    search: bool = False,
    signal: float | None = None,
    local: float = 1.0,
    cloud: float = 1.0,
    deadline: float = 120.0,
    battery: int | None = None,
    down: bool = False,
    as_json: AsJson = False,
) -> None:
    """Say which way a text would take under a policy. Nothing is asked and nothing is sent.

    Args:
        text: what a user would ask.
        policy: the YAML file.
        route: the way the client asks for.
        private: the request is tagged private.
        search: there is something to search.
        signal: of the beginning of the local answer: its least margin, or what the policy's probe says.
        local: predicted seconds of the local answer.
        cloud: predicted seconds of the cloud's.
        deadline: seconds until it is wanted.
        battery: charge in per cent, of a machine that runs on it.
        down: the cloud has failed lately.
    """
    rules = load_policy(policy)
    facts = Facts(route, private, personal_data(text), down, False, battery, local, cloud, deadline, search)
    first = choose(rules, facts)
    threshold = threshold_of(rules.signal)
    last = reconsider(rules, facts, first, signal, threshold) if first.action == "local" and route == "auto" else first
    document = {"facts": dataclasses.asdict(facts), "threshold": threshold, "signal": signal}
    document |= {"first": dataclasses.asdict(first), "then": dataclasses.asdict(last)}
    rows = [["first", f"{first.action}: {first.reason}"], ["then", f"{last.action}: {last.reason}"]]
    rows.append(["cloud", f"closed: {first.closed}" if first.closed else "open"])
    emit(document, columns([[name, said.ljust(max(len(row[1]) for row in rows))] for name, said in rows]), as_json)


def fit(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME|FILE.yaml|FILE.py,…")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    n: Annotated[int | None, tyro.conf.arg(metavar="EXAMPLES")] = None,
    tokens: int = 32,
    answers: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    against: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    seed: int = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Fit a probe to a model's own answers to tasks: how likely an answer is good, by the hidden states of its beginning.

    Half of the answers, drawn by the seed, are kept out of the fit: they say how well the probe tells good from bad, and
    a policy sets its threshold by them.

    Args:
        model: a checkpoint folder, or a stage or run folder; a GGUF file of it can be served with the probe.
        tasks: what it is asked, as for 'minnow eval'.
        out: the probe, for signal.probe of a policy.
        n: the first n examples of each task.
        tokens: of an answer's beginning that are read.
        answers: keep the answers there; the folder may be the --out of a 'minnow eval' of the same model.
        against: the --out of a 'minnow eval' of the model in the cloud on the same tasks: an answer that is wrong there too
            then counts as good, as nothing is gained by asking.
        seed: of the halves, and of tasks that are drawn.
        threads: of torch.
    """
    if tokens < 1:
        raise UserError(f"--tokens is {tokens}; a probe reads 1 or more")
    features, good = [], []
    with open_text_model(str(model), NO_SERVER, None, threads, 512) as opened:
        for name in names_in(tasks):
            task, examples, _ = prepare(name, n, False, opened.world(), seed)
            file = None if answers is None else answers / f"{task.name}.jsonl"
            wanted = questions({task.name: examples}, [0.0], 1)
            rows = ask(opened, wanted, file, survey_settings(opened, file, task.max_new_tokens, seed), f"answer {task.name}")  # fmt: skip
            right = _right(examples, rows)
            if against is not None:
                there = {row["id"]: row for row in read_answers(against / f"{task.name}.jsonl")}
                if missing := [each.id for each in examples if each.id not in there]:
                    raise UserError(
                        f"{against} has no answer to {missing[0]}; evaluate the other model on the same examples"
                    )
                best = _right(examples, [there[each.id] for each in examples])
                right = [here or not elsewhere for here, elsewhere in zip(right, best, strict=True)]
            good += right
            features += [_features(opened, *pair, tokens) for pair in zip(examples, rows, strict=True)]
    order = np.random.default_rng(seed).permutation(len(good))
    fitted, kept = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    probe = fit_probe(np.stack(features)[fitted], [good[place] for place in fitted], tokens)
    probe = dataclasses.replace(probe, calibration=tuple((probe.of(features[place]), good[place]) for place in kept))
    probe.save(out)
    signals, labels = zip(*probe.calibration, strict=True)
    document = {"probe": str(out), "answers": len(good), "good": sum(good), "kept_out": len(kept), "auroc": auroc(signals, labels)}  # fmt: skip
    said = f"{out}: {len(good)} answers, {sum(good)} good; AUROC {document['auroc']:.3f} on {len(kept)} kept out of the fit"
    emit(document, said, as_json)


def _right(examples: list[Example], rows: list[dict[str, Any]]) -> list[bool]:
    return [score_text(each, row["text"], ending_of(row)).correct for each, row in zip(examples, rows, strict=True)]


def _features(opened: TextModel, example: Example, row: dict[str, Any], tokens: int) -> np.ndarray:
    """What a probe reads of an answer that has been given."""
    local = opened.engine
    assert isinstance(local, LocalTextEngine) and opened.tokenizer is not None
    if not isinstance(local.engine, TorchEngine):
        raise UserError(f"{opened.name} shows no hidden states here; name the checkpoint it was exported from")
    prompt = local.prompt_ids(ChatPrompt(example.id, example.messages, example.tools))
    begun = opened.tokenizer.encode_chat(row["text"])[:tokens]
    return summary(hidden_states(local.engine.model, [*prompt, *begun])[len(prompt) - 1 :].numpy())
