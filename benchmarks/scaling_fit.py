"""How right and how fast the scaling-law fits are: closed forms, recovery of known constants, real runs, speed.

    python benchmarks/scaling_fit.py [--trials 200] [--draws 1000] [--runs FILE.csv] [--out FILE.json]

``--runs`` is the table of arXiv 2403.08540 (69 runs on C4 and RedPajama); without it that part is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minnow.scaling.fit import fit_law
from minnow.scaling.laws import EPOCH, HOFFMANN, Law
from minnow.scaling.minimise import cores
from minnow.scaling.plan import PRESETS, Budget, chinchilla, describe, inference_aware
from minnow.scaling.points import Columns, Points, read_points

NOISE = 0.009  # of log loss; gives E and A the standard errors published with the Epoch fit (0.026, 124.5)
COUNT = 240
LOSSES = {"C4 validation": "loss_c4_val_shard-{0000000..0000010}.tar", "OpenLM": "loss_openlm_shard_00000000.tar"}
DATA_SETS = ("c4_original", "rpj")


def synthetic(seed: int = 0, noise: float = NOISE, law: Law = EPOCH, count: int = COUNT) -> Points:
    """Runs in the range of the Chinchilla study: 6e18 to 3e21 FLOPs, sizes within a factor 6 of 20 tokens each."""
    random = np.random.default_rng(seed)
    flops = np.exp(random.uniform(math.log(6e18), math.log(3e21), count))
    params = np.sqrt(flops / 120) * np.exp(random.uniform(-1.8, 1.8, count))
    tokens = flops / (6 * params)
    loss = law.loss(params, tokens) * np.exp(noise * random.standard_normal(count))
    return Points(params, tokens, loss, places=tuple(f"run {row}" for row in range(count)))


def closed_form() -> dict[str, Any]:
    """The worked numbers: optimum of 350M@28T's compute, losses of 354M models, inference-aware sizes."""
    worst = 0.0
    for law in (HOFFMANN, EPOCH):
        for flops in np.geomspace(1e18, 1e26, 50):
            params, tokens = law.optimum(float(flops))
            share = law.beta / (law.alpha + law.beta)
            factor = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
            worst = max(worst, abs(params / (factor * (flops / 6) ** share) - 1), abs(6 * params * tokens / flops - 1))
            slope = law.alpha * law.A * params**-law.alpha / (law.beta * law.B * tokens**-law.beta)
            worst = max(worst, abs(slope - 1))
    size, tokens = PRESETS["lfm2.5-350m"]
    flops = 6 * size * tokens
    best = EPOCH.optimum(flops)
    start = chinchilla(Budget(flops=1e23), EPOCH)
    aware = [inference_aware(Budget(flops=1e23, inference_tokens=n), EPOCH, start) for n in (1e12, 1e13, 1e14)]
    return {
        "worst_relative_error": worst,
        "flops_350M_28T": flops,
        "optimum_params": best[0],
        "optimum_tokens": best[1],
        "optimum_loss": float(EPOCH.loss(*best)),
        "loss_354M": {f"{d:g}": float(EPOCH.loss(size, d)) for d in (7e9, 1e12, 10e12, 28e12)},
        "hoffmann_tokens_per_param": HOFFMANN.optimum(flops)[1] / HOFFMANN.optimum(flops)[0],
        "inference_aware": [{"params": one.params, "tokens_per_param": one.ratio} for one in aware],
        "presets": {
            name: {"tokens_per_param": describe(*each, EPOCH, Budget()).ratio, "epoch_loss": float(EPOCH.loss(*each))}
            for name, each in PRESETS.items()
        },
    }


def recovery(trials: int, draws: int, every: int, show: Callable[[str], None]) -> dict[str, Any]:
    """How often each true constant lies in its 95% interval, over data sets of 240 noisy runs."""
    hits: dict[str, int] = {name: 0 for name in ("E", "A", "B", "alpha", "beta")}
    errors: dict[str, list[float]] = {name: [] for name in hits}
    begin = time.perf_counter()
    for seed in range(trials):
        found = fit_law(synthetic(seed), draws=draws, seed=seed, every=every)
        for place, name in enumerate(hits):
            low, high = found.intervals[name]
            hits[name] += low <= getattr(EPOCH, name) <= high
            errors[name].append(float(found.draws[:, place].std()))
        if (seed + 1) % 20 == 0:
            show(f"  {seed + 1} of {trials} trials, {time.perf_counter() - begin:.0f} s")
    return {
        "trials": trials,
        "draws": draws,
        "every_start": every,
        "noise": NOISE,
        "coverage": {name: count / trials for name, count in hits.items()},
        "median_standard_error": {name: float(np.median(values)) for name, values in errors.items()},
    }


def overtrained(file: Path) -> list[dict[str, Any]]:
    """Fit on ratios of at most 1 (20 tokens per parameter), predict up to 32, for two losses and two training sets.

    Runs of a quarter are shown with and without: at 79M and 412M they end inside their learning-rate warm-up, and at
    154M warm-up takes 55% of them (the runs' published hyperparameters). ``floor`` is the error on the same runs of a
    law fitted to all of them: no fit of this form does better on average.
    """
    found = []
    for label, column in LOSSES.items():
        for data in DATA_SETS:
            for least in (0.25, 0.5):
                for form in ("shared", "chinchilla"):
                    names = Columns(loss=column)
                    chosen = (f"dataset={data}", f"multiplier>={least}")
                    train = read_points([file], names, (*chosen, "multiplier<=1"))
                    test = read_points([file], names, (*chosen, "multiplier>1"))
                    fit = fit_law(train, form, draws=0)
                    everything = fit_law(read_points([file], names, chosen), form, draws=0)
                    assert isinstance(fit.law, Law) and isinstance(everything.law, Law)
                    error, floor = (
                        np.abs(law.loss(test.params, test.tokens) / test.loss - 1) for law in (fit.law, everything.law)
                    )
                    found.append(
                        {
                            "loss": label,
                            "trained_on": data,
                            "ratios_from": least,
                            "form": form,
                            "fitted": len(train),
                            "predicted": len(test),
                            "mean_relative_error": float(error.mean()),
                            "max_relative_error": float(error.max()),
                            "floor": float(floor.mean()),
                        }
                    )
    return found


def speed() -> dict[str, float]:
    """Seconds for the full grid of starts and for 4,000 bootstrap draws on 240 runs: best of three, and CPU time.

    CPU time is summed over the cores, so it bounds the wall time of one free core whatever else the machine does.
    """
    points = synthetic(0)

    def best(draws: int) -> tuple[float, float]:
        wall, used = [], []
        for _ in range(3):
            begin, spent = time.perf_counter(), time.process_time()
            fit_law(points, draws=draws)
            wall.append(time.perf_counter() - begin)
            used.append(time.process_time() - spent)
        return min(wall), min(used)

    grid, both = best(0), best(4000)
    return {
        "cores": cores(),
        "grid_seconds": grid[0],
        "grid_cpu_seconds": grid[1],
        "bootstrap_seconds": max(0.0, both[0] - grid[0]),
        "bootstrap_cpu_seconds": max(0.0, both[1] - grid[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap draws of each trial")
    parser.add_argument("--every", type=int, default=11, help="of the grid's starts, in the trials (speed: all)")
    parser.add_argument("--runs", type=Path, help="CSV of arXiv 2403.08540")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    result: dict[str, Any] = {"closed_form": closed_form(), "speed": speed()}
    exact = result["closed_form"]
    print(f"closed form        worst relative error {exact['worst_relative_error']:.1e}")
    print(
        f"350M@28T           {exact['flops_350M_28T']:.3g} FLOPs; optimum {exact['optimum_params'] / 1e9:.1f}B "
        f"parameters, {exact['optimum_tokens'] / 1e12:.2f}T tokens, loss {exact['optimum_loss']:.3f}"
    )
    print("354M               " + ", ".join(f"{loss:.3f} @ {tokens}" for tokens, loss in exact["loss_354M"].items()))
    plans = exact["inference_aware"]
    aware = ", ".join(f"{one['params'] / 1e9:.1f}B at {one['tokens_per_param']:.0f}" for one in plans)
    print(f"inference-aware    {aware} tokens/parameter (1e12, 1e13, 1e14 tokens)")
    timing = result["speed"]
    for label, what in (("full grid", "grid"), ("4,000 draws", "bootstrap")):
        print(
            f"speed              {label:<12} {timing[f'{what}_seconds']:.2f} s on {timing['cores']} cores, "
            f"{timing[f'{what}_cpu_seconds']:.2f} s of CPU"
        )
    if options.runs:
        result["overtrained"] = overtrained(options.runs)
        for row in result["overtrained"]:
            print(
                f"{row['trained_on']:<12} {row['loss']:<14} from {row['ratios_from']:<5}{row['form']:<11} "
                f"{row['fitted']} runs predict {row['predicted']}: {row['mean_relative_error']:.2%} mean, {row['max_relative_error']:.2%} worst, "
                f"{row['floor']:.2%} when fitted to all"
            )
    if options.trials:
        result["recovery"] = recovery(
            options.trials, options.draws, options.every, lambda line: print(line, flush=True)
        )
        covered = ", ".join(f"{name} {share:.1%}" for name, share in result["recovery"]["coverage"].items())
        print(f"recovery           inside the 95% interval: {covered}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
