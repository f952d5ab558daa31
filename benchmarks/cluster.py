"""How far the cost model of ``minnow plan-cluster`` is from runs: here, measured against measured, and for GPUs against
published ones.

Here: small models of several depths, widths and mixtures train on one and two ranks of one thread, pinned to a core each,
over gloo, with and without activation checkpointing. After every step each rank times the model's parts once
(:class:`minnow.scaling.calibrate.Calibration`), so that what else the machine does meets both alike. Prints the median
step beside the step that the parts' medians foretell, and the peak of the resident memory beside the foretold one.

    python benchmarks/cluster.py [--steps 15] [--json FILE]     # runs on this machine
    python benchmarks/cluster.py --published                    # GPUs: no run, only the comparison

``--clock cpu`` counts the seconds that a process computes, which others on the machine disturb less; one rank only, since
waiting for another rank takes none.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minnow.data.loader import Loader
from minnow.data.packing import Packed
from minnow.machine import machine, peak_rss_bytes
from minnow.model.backbone import Backbone
from minnow.model.config import Attention, Dense, Experts, FeedForward, LayerConfig, ModelConfig, Rope, ShortConv
from minnow.scaling import calibrate
from minnow.scaling.accelerators import GPUS
from minnow.scaling.calibrate import Calibration, warm_up
from minnow.scaling.cluster import assess
from minnow.scaling.job import Job, Mesh
from minnow.scaling.roofline import Roofline
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import next_token
from minnow.train.optimizer import OptimizerSettings
from minnow.train.parallel import Parallel
from minnow.train.ranks import joined

LENGTH, ROWS, VOCABULARY = 256, 8, 2048  # rows of each rank
WARM = 3  # steps before the first that counts


def lfm2(width: int, layers: int, feed_forward: FeedForward, family: str = "lfm2") -> ModelConfig:
    """Every third layer attends; in a mixture the first is dense, as in LFM2-MoE."""
    attends = Attention(width // 32, width // 128, 32, Rope(1e6))
    made = [LayerConfig(attends if i % 3 == 2 else ShortConv(), feed_forward) for i in range(layers)]
    if family == "lfm2_moe":
        made[0] = LayerConfig(made[0].mixer, Dense(704))
    return ModelConfig(family, VOCABULARY, width, tuple(made))


SHAPES = {
    "6 x 256": (lfm2(256, 6, Dense(704)), False),
    "12 x 256": (lfm2(256, 12, Dense(704)), False),
    "6 x 512, Muon": (lfm2(512, 6, Dense(1408)), True),
    "6 x 256, 8 experts": (lfm2(256, 6, Experts(8, 2, 352), "lfm2_moe"), False),
}
"""Depth and width, and whether Muon updates the matrices."""


def cases() -> list[dict[str, Any]]:
    """Each shape on one and two ranks; the first also in two passes a step, and most computing again."""
    made = [
        {"shape": shape, "ranks": ranks, "again": again, "at_once": ROWS}
        for ranks in (1, 2)
        for shape in SHAPES
        for again in (False, True)
        if ranks == 1 or not again or shape == "6 x 256"
    ]
    return [*made, *({"shape": "6 x 256", "ranks": ranks, "again": False, "at_once": ROWS // 2} for ranks in (1, 2))]


def train(case: dict[str, Any], steps: int, clock: str) -> None:
    """What one rank does; the first prints what it has found."""
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("RANK", "0")) % len(cores)]})
    now: Callable[[], float] = time.process_time if clock == "cpu" else time.perf_counter
    calibrate._clock = lambda device: now()
    config, muon = SHAPES[case["shape"]]
    draw = np.random.default_rng(0).integers(0, VOCABULARY, (64, LENGTH + 1)).astype(np.int32)
    loader = Loader(Packed(draw[:, :-1], draw[:, 1:], np.ones((64, LENGTH), np.int16)), ROWS * case["ranks"], seed=0)
    with joined(Parallel(activation_checkpointing=case["again"])) as ranks, tempfile.TemporaryDirectory() as folder:
        warm_up(ranks)
        process = peak_rss_bytes()
        model = Backbone(config)
        model.initialise(0)
        settings = TrainSettings(
            WARM + steps, OptimizerSettings(1e-3, muon=muon), spike=0.0, save_seconds=1e9, log_every=1
        )
        trainer = Trainer(
            model,
            next_token,
            lambda step: [loader.batch(step, ranks.rank, ranks.count)],
            settings,
            lambda **numbers: None,
            Path(folder) / "train.pt",
            ranks,
        )
        trainer.limit(case["at_once"] * LENGTH)
        times: list[float] = []
        peak, calibration, begun = 0, None, now()

        def after(advanced: int, note: str) -> None:
            nonlocal begun, calibration, peak
            if trainer.done_steps > WARM:
                times.append(now() - begun)
            if calibration is None and trainer.done_steps == WARM:
                peak = peak_rss_bytes()
                calibration = Calibration(config, LENGTH, (ROWS // 4, ROWS), muon, process, ranks)
                calibration.round()  # warms up, and does not count
                calibration.forget()
            if calibration is not None:
                calibration.round()
            begun = now()

        trainer.run(progress=after)
        assert calibration is not None
        found = calibration.measured("here")
        job = Job(config, LENGTH, ROWS * case["ranks"], 1e9, muon)
        mesh = Mesh(ranks.count, ranks.count, ranks.count, rows=case["at_once"], checkpointing=case["again"])
        plan = assess(job, mesh, found)
        slowest = statistics.median(times)
        if ranks.count > 1:
            worst = torch.tensor([slowest, float(peak)], dtype=torch.float64)
            torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MAX)
            slowest, peak = worst.tolist()
        if ranks.first:
            told = {
                "step_seconds": slowest,
                "foretold_seconds": plan.step.seconds,
                "peak_bytes": peak,
                "foretold_bytes": plan.memory["peak"],
                "process_bytes": process,
                "parts": {**plan.step.__dict__},
                "memory": plan.memory,
            }
            print(json.dumps(told), flush=True)


def launch(case: dict[str, Any], steps: int, clock: str) -> dict[str, Any]:
    """Run one case in processes of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = case["ranks"]
    common = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, __file__, "--case", json.dumps(case), "--steps", str(steps), "--clock", clock]
    running = []
    for rank in range(ranks):
        set_here = {name: str(value) for name, value in (common | {"RANK": rank}).items()}
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | set_here
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    told = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{case} did not end well")
    return case | json.loads(told[0])


def here(steps: int, clock: str, only: int | None) -> list[dict[str, Any]]:
    """All cases, printed as they come."""
    print(f"{machine()['cpu']}, one thread a rank, {clock} seconds")
    print(
        f"{'':44}{'step, s':>9}{'foretold':>10}{'off':>8}{'peak, MiB':>11}{'foretold':>10}{'off':>8}{'beside process':>16}"
    )
    made = []
    for case in cases():
        if only not in (None, case["ranks"]) or (clock == "cpu" and case["ranks"] > 1):
            continue
        one = launch(case, steps, clock)
        made.append(one)
        name = f"{one['shape']}, {one['ranks']} rank{'s' * (one['ranks'] > 1)}{', again' * one['again']}"
        name += f"{', two passes' * (one['at_once'] < ROWS)}"
        time_off = one["foretold_seconds"] / one["step_seconds"] - 1
        memory_off = one["foretold_bytes"] / one["peak_bytes"] - 1
        beside = (one["foretold_bytes"] - one["process_bytes"]) / (one["peak_bytes"] - one["process_bytes"]) - 1
        print(
            f"{name:44}{one['step_seconds']:9.3f}{one['foretold_seconds']:10.3f}{time_off:+8.1%}"
            f"{one['peak_bytes'] / 2**20:11.0f}{one['foretold_bytes'] / 2**20:10.0f}{memory_off:+8.1%}{beside:+16.1%}",
            flush=True,
        )
    return made


def llama(vocabulary: int, width: int, layers: int, attention: Attention, inner: int, tied: bool) -> ModelConfig:
    return ModelConfig("llama", vocabulary, width, (LayerConfig(attention, Dense(inner)),) * layers, tied=tied)


def published() -> list[dict[str, Any]]:
    """Published bfloat16 runs beside what the roofline says of the same shape, ranks, rows and lengths."""
    rope = Rope(5e5)
    llama_8b = llama(128_256, 4096, 32, Attention(32, 8, 128, rope, qk_norm=False), 14_336, tied=False)
    smollm3 = llama(128_256, 2048, 36, Attention(16, 4, 128, rope, qk_norm=False), 11_008, tied=True)
    # Two matrices of four widths in place of three: as many weights. Three layers of four see 1,024 positions.
    near, far = (Attention(13, 13, 128, rope, window=window) for window in (1024, None))
    layers = tuple(LayerConfig(far if i % 4 == 3 else near, Dense(1664 * 8 // 3)) for i in range(26))
    nanochat = ModelConfig("llama", 32_768, 1664, layers, tied=False)
    points = [
        ("torchtitan, Llama 3.1 8B, 8 H100 (500 W)", "H100", llama_8b, 8192, 16, Mesh(8, 8, 8, rows=2), 0.5, 6667),
        ("torchtitan, Llama 3.1 8B, 128 H100 (500 W)", "H100", llama_8b, 8192, 256, Mesh(128, 8, 128, rows=2), 0.5, 6514),
        ("torchtitan, Llama 3 8B, 64 A100", "A100", llama_8b, 8192, 64, Mesh(64, 8, 64, rows=1), 0.5, 2973),
        ("nanochat, d26, 8 H100", "H100", nanochat, 2048, 512, Mesh(8, 8, 8, rows=16), 0.0, 630e3 / 8),
        # In their runs two ranks share the matrices of a row (tensor parallel); here its positions.
        ("SmolLM3 3B, 384 H100", "H100", smollm3, 4096, 576, Mesh(384, 8, 8, context=2, rows=3), 0.0, 14e3),
    ]  # fmt: skip
    made = []
    for name, gpu, config, length, rows, mesh, again, rate in points:
        job, costs = Job(config, length, rows, 1e12, muon=False), Roofline(GPUS[gpu])
        plain, full = (assess(job, replace(mesh, checkpointing=way), costs).step.seconds for way in (False, True))
        seconds = plain + again * (full - plain)  # selective checkpointing is taken as halfway
        foretold = rows * length / seconds / mesh.ranks
        mfu = rate * job.flops / costs.peak
        made.append({"point": name, "published": rate, "foretold": foretold, "mfu": mfu})
    print(f"{'tokens/s of a GPU':46}{'published':>11}{'foretold':>10}{'off':>8}{'without it':>12}{'its MFU':>9}")
    for one in made:
        # Its error had the share that runs reach been taken from the other points alone.
        ratios = {other["point"]: other["published"] / other["foretold"] for other in made}
        others = statistics.geometric_mean([ratio for point, ratio in ratios.items() if point != one["point"]])
        one["off"], one["off_without_it"] = 1 / ratios[one["point"]] - 1, others / ratios[one["point"]] - 1
        print(
            f"{one['point']:46}{one['published']:11,.0f}{one['foretold']:10,.0f}{one['off']:+8.1%}"
            f"{one['off_without_it']:+12.1%}{one['mfu']:9.1%}"
        )
    print(f"geometric mean of published over foretold: {statistics.geometric_mean(ratios.values()):.3f}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", action="store_true", help="compare with published GPU runs")
    parser.add_argument("--steps", type=int, default=15, help="that count, of each case")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--ranks", type=int, choices=(1, 2), help="only cases of so many ranks")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        train(json.loads(options.case), options.steps, options.clock)
        return
    made = published() if options.published else here(options.steps, options.clock, options.ranks)
    if options.json:
        options.json.write_text(json.dumps(made, indent=2))


if __name__ == "__main__":
    main()
