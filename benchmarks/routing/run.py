"""Edge/cloud routing measured: a small and a larger model of our own on the pocket world's tasks, over made-up links.

    T=arithmetic,walk,enumeration,page,question,search,extraction,calculator,summary
    minnow eval EDGE --tasks $T --n 200 --out answers/edge         # and CLOUD, answers/cloud
    minnow profile EDGE --json > edge.json                         # and CLOUD, cloud.json
    python benchmarks/routing/run.py EDGE CLOUD --edge-answers answers/edge --cloud-answers answers/cloud
        --edge-profile edge.json --cloud-profile cloud.json [--n 100] [--calibrate 100] [--live 150] [--json FILE]

Both are checkpoints of runs on the same world, their answers greedy ones to held-out prompts of every task: the first
``--n`` of each are the test, ``--calibrate`` others fit the probes and set the thresholds. What follows from the answers
alone (AUROC, APGR, hand-offs at 95% of the cloud's quality) needs no link. Then ``--asked`` test prompts are asked on each link, in
virtual time at the measured pace of both models, through the server's own desk and router (:mod:`replay`). ``--live`` asks
as many on one link in real time, through two real servers over HTTP with a proxy between them (:mod:`live`), and sets what
virtual time says of the same requests beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from answers import Answer, Pace, load
from links import PLACES, trace
from live import live
from replay import Outcome, Way, play, works

from minnow.cli.models import resolve_model
from minnow.loops import Rate
from minnow.recipe.run_record import world_of
from minnow.serve.policy import Cloud, Policy, Signal, conformal_threshold
from minnow.serve.probe import Probe, auroc, fit_probe, summary
from minnow.tasks import Example

TOKENS = 32
DEADLINE = 3.0  # seconds
EVERY = 6.0  # seconds between requests, on average
_CLOUD = Cloud("http://cloud/v1", "cloud", first_token=1.5, stall=1.5)


class Prompts:
    """Some prompts with both models' answers: which are right, and which of the edge model are right or no worse."""

    def __init__(self, examples: Sequence[Example], local: Mapping[str, Answer], cloud: Mapping[str, Answer]) -> None:
        self.examples, self.ids = list(examples), [each.id for each in examples]
        self.answers = [local[each] for each in self.ids]
        self.here = np.array([each.right for each in self.answers])
        self.there = np.array([cloud[each].right for each in self.ids])
        self.enough = self.here | ~self.there

    def features(self) -> np.ndarray:
        return np.stack([summary(each.states) for each in self.answers])


def signals_of(fit: Prompts, test: Prompts) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Probe]]:
    """Every signal on the prompts it may be fitted to and on the test's, and the probes."""

    def of(prompts: Prompts) -> dict[str, np.ndarray]:
        whole = [each.tokens if len(each.tokens) else np.zeros((1, 3)) for each in prompts.answers]
        begun = [each[:TOKENS] for each in whole]
        return {
            "log-probability, mean": np.array([each[:, 0].mean() for each in begun]),
            "log-probability, least": np.array([each[:, 0].min() for each in begun]),
            "log-probability, first": np.array([each[0, 0] for each in begun]),
            "margin, mean": np.array([each[:, 1].mean() for each in begun]),
            "margin, least": np.array([each[:, 1].min() for each in begun]),
            "margin, lowest tenth": np.array([np.quantile(each[:, 1], 0.1) for each in begun]),
            "tokens of a margin below 0.2": np.array([-np.sum(each[:, 1] < 0.2) for each in begun], float),
            "entropy, mean": np.array([-each[:, 2].mean() for each in begun]),
            "entropy, most": np.array([-each[:, 2].max() for each in begun]),
            "entropy, first": np.array([-each[0, 2] for each in begun]),
            "log-probability, mean of all": np.array([each[:, 0].mean() for each in whole]),
            "log-probability, least of all": np.array([each[:, 0].min() for each in whole]),
        }

    found, shown = of(fit), of(test)
    features, fresh, probes = fit.features(), test.features(), {}
    half = np.random.default_rng(0).permutation(len(fit.ids)) % 2 == 0  # the rest calibrates
    for name, labels in (("probe", fit.here), ("probe, against the cloud", fit.enough)):
        probe = fit_probe(features[half], labels[half].tolist(), TOKENS)
        rows = tuple((probe.of(row), bool(good)) for row, good in zip(features[~half], labels[~half], strict=True))
        probes[name] = replace(probe, calibration=rows)
        found[name] = np.where(half, np.nan, [probe.of(row) for row in features])
        shown[name] = np.array([probe.of(row) for row in fresh])
    shown["random"] = np.random.default_rng(1).random(len(test.ids))
    found["random"] = np.random.default_rng(2).random(len(fit.ids))
    shown["oracle"], found["oracle"] = (
        test.enough.astype(float),
        fit.enough.astype(float),
    )
    return found, shown, probes


def curve(signal: np.ndarray, test: Prompts) -> tuple[np.ndarray, np.ndarray]:
    """Share handed off and quality, from none handed off to all; equal signals in an order of chance."""
    order = np.lexsort((np.random.default_rng(3).random(len(signal)), signal))
    gained = np.cumsum(np.concatenate([[0], (test.there.astype(int) - test.here)[order]]))
    return np.arange(len(signal) + 1) / len(signal), (test.here.sum() + gained) / len(signal)


def by_answers(shown: dict[str, np.ndarray], test: Prompts) -> dict[str, dict[str, float]]:
    """What each signal is worth by the answers alone."""
    low, high = float(test.here.mean()), float(test.there.mean())
    rows = {}
    for name, signal in shown.items():
        shares, quality = curve(signal, test)
        reached = np.flatnonzero(quality >= 0.95 * high)
        rows[name] = {
            "auroc_right": auroc(signal.tolist(), test.here.tolist()),
            "auroc_enough": auroc(signal.tolist(), test.enough.tolist()),
            "apgr": float(np.trapezoid((quality - low) / (high - low), shares)),
            "handed_off_at_95": float(shares[reached[0]]),
            "quality_at_40": float(quality[round(0.4 * len(signal))] / high),
        }
    return rows


def threshold(found: np.ndarray, fit: Prompts, risk: float) -> float:
    """The conformal threshold on the calibration prompts: at most ``risk`` are local and worse than the cloud's."""
    known = ~np.isnan(found)
    return conformal_threshold(found[known].tolist(), fit.enough[known].tolist(), risk)


def summarise(outcomes: Sequence[Outcome], test: Prompts) -> dict[str, float]:
    """Quality is set beside that of either model on the same requests and a link that never fails."""
    places = {each: place for place, each in enumerate(test.ids)}
    asked = [places[each.id] for each in outcomes]
    low, high = float(test.here[asked].mean()), float(test.there[asked].mean())
    seconds = np.array([each.seconds for each in outcomes])
    down = [each for each in outcomes if not works(each.state)]
    quality = float(np.mean([each.right for each in outcomes]))
    return {
        "n": len(outcomes),
        "quality": quality,
        "of_cloud": quality / high,
        "gap_recovered": (quality - low) / (high - low),
        "handed_off": float(np.mean([each.sent for each in outcomes])),
        "from_cloud": float(np.mean([each.from_cloud for each in outcomes])),
        "p50_ms": 1000 * float(np.percentile(seconds, 50)),
        "p95_ms": 1000 * float(np.percentile(seconds, 95)),
        "late": float(np.mean([each.late for each in outcomes])),
        "bytes": float(np.mean([each.bytes for each in outcomes])),
        "answered_while_down": float(np.mean([not each.late for each in down])),
        "right_while_down": float(np.mean([each.right for each in down])),
    }  # fmt: skip


def ways(
    shown: dict[str, np.ndarray],
    found: dict[str, np.ndarray],
    fit: Prompts,
    test: Prompts,
    risk: float,
    decode: float,
    probes: dict[str, Path],
) -> dict[str, Way]:
    """The rows of the table."""
    base = Policy(_CLOUD, decode=decode)

    def by(signals: np.ndarray, cut: float) -> Way:
        given = dict(zip(test.ids, signals.tolist(), strict=True))
        return Way(replace(base, signal=Signal(cut, TOKENS)), signals=given)

    rows = {
        "always local": Way(Policy()),
        "always cloud": Way(Policy(), "upstream"),
        "cloud first, local stands in": Way(base, "cloud"),
        "least margin": Way(replace(base, signal=Signal(threshold(found["margin, least"], fit, risk), TOKENS))),
    }
    for name, file in probes.items():
        signal = Signal(threshold(found[name], fit, risk), probe=file)
        rows[name] = Way(replace(base, signal=signal))
    rate = float((shown["probe, against the cloud"] < threshold(found["probe, against the cloud"], fit, risk)).mean())
    rows["random, at the last probe's rate"] = by(shown["random"], rate)
    rows["oracle"] = by(shown["oracle"], 0.5)
    return rows


def requests(place: str, examples: Sequence[Example], every: float, seed: int) -> list[tuple[float, Example]]:
    """The examples in an order of chance, at times of chance."""
    noise, now, asked = random.Random(f"{seed}/{place}/requests"), 0.0, []
    for example in noise.sample(list(examples), len(examples)):
        now += noise.expovariate(1 / every)
        asked.append((now, example))
    return asked


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(rows.values())))
    print(f"\n{title}\n{'':34}" + "".join(f"{name:>21}" for name in names))
    for name, row in rows.items():
        print(f"{name:34}" + "".join(f"{row[each]:21.3f}" for each in names), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("edge", type=Path)
    parser.add_argument("cloud", type=Path)
    parser.add_argument("--edge-answers", type=Path, required=True)
    parser.add_argument("--cloud-answers", type=Path, required=True)
    parser.add_argument("--edge-profile", type=Path, required=True)
    parser.add_argument("--cloud-profile", type=Path, required=True)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--calibrate", type=int, default=100)
    parser.add_argument("--asked", type=int, default=200)
    parser.add_argument("--live", type=int, default=0)
    parser.add_argument("--place", default="train", choices=sorted(PLACES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = world_of(options.edge)
    drawn = [world.examples(task, "held_out", options.n + options.calibrate) for task in world.TASKS]
    tests = [each for examples in drawn for each in examples[: options.n]]
    others = [each for examples in drawn for each in examples[options.n :]]
    pace, far_pace = Pace.of(options.edge_profile), Pace.of(options.cloud_profile)
    edge, cloud_model = resolve_model(options.edge), resolve_model(options.cloud)
    local = load(options.edge_answers, edge, [*tests, *others], pace, TOKENS)
    cloud = load(options.cloud_answers, cloud_model, [*tests, *others], far_pace)
    fit, test = Prompts(others, local, cloud), Prompts(tests, local, cloud)
    result: dict[str, Any] = {
        "quality": {
            name: Rate(int(right.sum()), len(tests)).as_dict()
            for name, right in (("local", test.here), ("cloud", test.there))
        },
        "by_task": {
            task: {
                name: float(np.mean([one for one, each in zip(right, tests, strict=True) if each.task == task]))
                for name, right in (("local", test.here), ("cloud", test.there))
            }
            for task in world.TASKS
        },
    }
    show("by task", result["by_task"])
    found, shown, probes = signals_of(fit, test)
    untrained = {name: signal for name, signal in found.items() if not np.isnan(signal).any()}
    result["signals_elsewhere"] = by_answers(untrained, fit)
    show("signals without a probe, on the other prompts: those to choose by", result["signals_elsewhere"])
    result["signals"] = by_answers(shown, test)
    show("signals, by the answers alone", result["signals"])
    # What may be lost, by the prompts that set the thresholds.
    risk = 0.05 * float(fit.there.mean())
    with tempfile.TemporaryDirectory() as temporary:
        files = {}
        for place, (name, probe) in enumerate(probes.items()):
            files[name] = Path(temporary) / f"{place}.json"
            probe.save(files[name])
        rows = ways(shown, found, fit, test, risk, 1 / pace.decode, files)
        result["risk"], result["links"] = risk, {}
        for name, way in rows.items():
            outcomes = []
            for place in PLACES:
                asked = requests(place, tests, EVERY, options.seed)[: options.asked]
                path = trace(place, asked[-1][0] + 600, options.seed)
                outcomes += play(way, path, options.seed, asked, local, cloud, pace, DEADLINE)
            result["links"][name] = summarise(outcomes, test)
        show(f"{options.asked} prompts on each of {len(PLACES)} links, {DEADLINE:g} s each", result["links"])
        if options.live:
            way = rows["probe, against the cloud"]
            some = random.Random(f"{options.seed}/live").sample(tests, options.live)
            asked = requests(options.place, some, 2.0, options.seed)
            path = trace(options.place, asked[-1][0] + 600, options.seed)
            virtual = play(way, path, options.seed, asked, local, cloud, pace, DEADLINE)
            real = asyncio.run(live(Path(temporary), edge, cloud_model, way, path, options.seed, asked, DEADLINE))
            result["live"] = {"virtual time": summarise(virtual, test), "real time": summarise(real, test)}
            show(f"{options.live} requests on the link {options.place!r}", result["live"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
