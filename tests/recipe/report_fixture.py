"""A made-up run folder in the shapes of docs/architecture.md, for the report's tests: no number here was measured."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/a.png onerror=alert(1)> & \"quoted\""
TASKS = ("arithmetic", "walks", "extraction", "tool_calls", "summaries", "recall")


def wilson(count: int, total: int) -> dict[str, Any]:
    z, rate = 1.959963984540054, count / total
    middle = (rate + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {"count": count, "total": total, "rate": rate, "low": low if count else 0.0, "high": high}


def write_stage(folder: Path, name: str, result: dict[str, Any], metrics: list[dict[str, Any]] | None = None) -> None:
    stage = folder / name
    stage.mkdir(parents=True)
    (stage / "config.json").write_text(json.dumps({"kind": name.split("-")[0]}))
    (stage / "result.json").write_text(json.dumps(result))
    if metrics:
        (stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (stage / "done.json").write_text(json.dumps({"seconds": 12.5, "peak_rss_bytes": 640_000_000}))


def curve(parameters: int, tokens: int, seconds: float, steps: int, low: float) -> list[dict[str, Any]]:
    draw = random.Random(0)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        seen = tokens * step // steps
        loss = low + 5.6 * (1 + 30 * step / steps) ** -0.9
        base = {"step": step, "tokens": seen, "seconds": seconds * step / steps}
        lines.append(
            base | {"loss": loss + draw.gauss(0, 0.05), "learning_rate": 1e-3, "tokens_per_second": tokens / seconds}
        )
        if step % (steps // 12) == 0:
            lines.append(base | {"held_out_loss": loss + 0.04, "bits_per_byte": (loss + 0.04) * 0.47})
    return lines


def examples(stage: str) -> list[dict[str, Any]]:
    towns = "The towns of Velmora are: Ashby, Corran, Dunmere, Eastfold, Fenwick, Garrow, "
    copy = "Harrow, Ilsley, Jarrow, "
    walk = "start at K7. go to M2. go to P4. "
    step = "go to M2. go to P4. "
    return [
        {
            "task": "enumeration",
            "prompt": "List all towns of Velmora.",
            "text": towns + copy * 18 + "Harr",
            "onset_character": len(towns + copy),
            "kind": "period",
            "period": 9,
            "copies": 17.2,
            "temperature": 0.0,
        },
        {
            "task": "walks",
            "prompt": f"Find a way from K7 to Z1. {HOSTILE}",
            "text": HOSTILE + walk + step * 22,
            "onset_character": len(HOSTILE + walk),
            "kind": "period",
            "period": 10,
            "copies": 22.0,
            "temperature": 0.0,
        },
    ]


def measure(stage: str, loops: tuple[int, int, int], scores: tuple[int, ...]) -> dict[str, Any]:
    prompts = ("enumeration", "pages", "walks", "chains")
    entries = []
    for temperature, count in zip((0.0, 0.3, 1.0), loops, strict=True):
        split = {
            p: wilson(min(125, round(count * w)), 125) for p, w in zip(prompts, (0.5, 0.25, 0.2, 0.05), strict=True)
        }
        entries.append(
            {
                "temperature": temperature,
                "max_new_tokens": 512,
                **wilson(count, 500),
                "truncated": count // 9,
                "by_task": split,
            }
        )
    return {
        "stage": stage,
        "checkpoint": f"runs/pocket/{stage}/checkpoint",
        "seconds": 31.5,
        "tasks": {task: wilson(score, 250) for task, score in zip(TASKS, scores, strict=True)},
        "loops": entries,
        "examples": examples(stage) if stage == "sft" else [],
    }


def steps(first: float, last: float, score: float) -> list[dict[str, Any]]:
    return [
        {
            "step": 5 * k,
            "loop_rate": max(last, first * 0.45**k),
            "task_score": score + 0.004 * k - (0.03 if k == 7 else 0),
        }
        for k in range(9)
    ]


def write_books(folder: Path) -> None:
    """The shorter recipe: tokenizer, pretrain, measure, export, profile."""
    write_stage(folder, "tokenizer", {"seconds": 14.0})
    pretrain = {
        "parameters": 8_412_160,
        "tokens": 31_500_000,
        "seconds": 1201.0,
        "tokens_per_second": 26228.0,
        "final_loss": 3.312,
        "bits_per_byte": 1.874,
    }
    write_stage(folder, "pretrain", pretrain, curve(8_412_160, 31_500_000, 1201.0, 1440, 3.05))
    write_stage(folder, "export", {"files": exported()})
    write_stage(folder, "profile", {"machine": machine(), "files": profiled()})


def machine() -> dict[str, Any]:
    return {"cpu": "AMD EPYC 7B13", "cores": 2, "memory_bytes": 8_217_456_640, "system": "Linux 6.1"}


def exported() -> list[dict[str, Any]]:
    rows = (
        ("F16", 2_684_512, 0.9987, 3.912, 231),
        ("Q8_0", 1_466_208, 0.9941, 3.918, 230),
        ("Q4_0", 812_960, 0.9312, 4.127, 219),
    )
    return [
        {
            "file": f"model-{kind}.gguf",
            "type": kind,
            "bytes": size,
            "positions": 4096,
            "agree": round(4096 * agreement),
            "agreement": round(4096 * agreement) / 4096,
            "max_log_prob_error": 0.004,
            "perplexity": perplexity,
            "tasks": {task: wilson(right, 250) for task in TASKS},
        }
        for kind, size, agreement, perplexity, right in rows
    ]


def profiled() -> list[dict[str, Any]]:
    rows = (("F16", 2_684_512, 2140.0), ("Q8_0", 1_466_208, 2870.0), ("Q4_0", 812_960, 3315.0))
    return [
        {
            "file": f"model-{kind}.gguf",
            "type": kind,
            "bytes": size,
            "load_seconds": 0.02,
            "peak_rss_bytes": 24_000_000 + 2 * size,
            "prefill": [
                {
                    "tokens": n,
                    "tokens_per_second": speed * 4,
                    "ttft_ms": n / speed * 250,
                    "p50_ms": n / speed * 250,
                    "p95_ms": n / speed * 300,
                }
                for n in (32, 256)
            ],
            "decode": [
                {"depth": d, "tokens_per_second": speed * (1 - d / 4000), "p50_ms": 0.4, "p95_ms": 0.6}
                for d in (0, 256)
            ],
            "noisy": kind == "F16",
        }
        for kind, size, speed in rows
    ]


def trace() -> dict[str, Any]:
    return {
        "correct": True,
        "messages": [
            {"role": "system", "content": "List of tools: [...]"},
            {"role": "user", "content": f"Which river runs through the town where Orla Fenn was born? {HOSTILE}"},
            {"role": "assistant", "content": '<|tool_call_start|>[search(query="Orla Fenn")]<|tool_call_end|>'},
            {"role": "tool", "content": "Orla Fenn: a glassblower, born in Corran in 1412. She wrote The Low Lantern."},
            {"role": "assistant", "content": '<|tool_call_start|>[search(query="Corran")]<|tool_call_end|>'},
            {"role": "tool", "content": "Corran: a town of 8,210 people on the river Teasel."},
            {"role": "assistant", "content": "The river Teasel."},
        ],
    }


def write_pocket(folder: Path) -> None:
    """Every stage of the main recipe."""
    write_stage(folder, "tokenizer", {"seconds": 4.1})
    parameters = 1_318_144
    pretrain = {
        "parameters": parameters,
        "tokens": 38_400_000,
        "seconds": 238.4,
        "tokens_per_second": 161_073.0,
        "final_loss": 1.314,
        "bits_per_byte": 0.684,
    }
    write_stage(folder, "pretrain", pretrain, curve(parameters, 38_400_000, 238.4, 2400, 1.1))
    write_stage(folder, "sft", pretrain | {"tokens": 6_100_000, "seconds": 61.0, "bits_per_byte": None})
    write_stage(folder, "measure-sft", measure("sft", (156, 71, 0), (228, 214, 241, 236, 205, 31)))
    write_stage(folder, "measure-dpo", measure("dpo", (14, 3, 0), (230, 211, 242, 239, 208, 29)))
    write_stage(folder, "measure-grpo", measure("grpo", (0, 0, 0), (241, 190, 243, 240, 210, 30)))
    write_stage(folder, "measure-merge", measure("merge", (1, 0, 0), (241, 190, 243, 240, 210, 30)))
    pairs = {
        "prompts": 400,
        "rollouts": 2400,
        "pairs": 312,
        "loop_pairs": 187,
        "quality_pairs": 125,
        "all_loop_prompts": 4,
    }
    write_stage(folder, "pairs", pairs)
    write_stage(folder, "dpo", {"steps": 40, "seconds": 28.0, "best_step": 25, "history": steps(0.31, 0.02, 0.86)})
    write_stage(folder, "grpo", {"steps": 40, "seconds": 44.0, "best_step": 30, "history": steps(0.028, 0.0, 0.88)})
    candidates = [
        {"name": "grpo", "task_score": 0.912, "loop_rate": 0.0},
        {"name": "0.75 grpo + 0.25 dpo", "task_score": 0.904, "loop_rate": 0.002},
    ]
    write_stage(folder, "merge", {"kept": False, "chosen": "grpo", "candidates": candidates})
    write_stage(folder, "export", {"files": exported()})
    write_stage(folder, "profile", {"machine": machine(), "files": profiled()})
    agent = {
        "closed_book": {"one_hop": wilson(9, 200), "two_hop": wilson(4, 200)},
        "search": {"one_hop": wilson(191, 200), "two_hop": wilson(164, 200)},
        "examples": [trace()],
    }
    write_stage(folder, "agent", agent)
    recipe = {
        "name": "pocket",
        "seed": 0,
        "data": {"world": "pocket", "entities": 4000},
        "model": {"preset": "pocket", "layers": 6, "width": 128, "heads": 4},
        "stages": {path.name: {"kind": path.name.split("-")[0]} for path in sorted(folder.iterdir())},
    }
    parts = {"embedding": 262_144, "attention": 131_328, "conv": 198_144, "mlp": 724_992, "norms": 1_536}
    whole = {
        "recipe": recipe,
        "versions": {"minnow": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": machine(),
        "accounting": {"total": parameters, "parts": parts},
    }
    (folder / "recipe.json").write_text(json.dumps(whole))
    seconds = {
        "tokenizer": 4.1,
        "pretrain": 238.4,
        "sft": 61.0,
        "measure-sft": 31.5,
        "pairs": 20.0,
        "dpo": 28.0,
        "grpo": 44.0,
    }
    costs = [
        {"stage": name, "status": "ran", "seconds": s, "peak_rss_bytes": 1_850_000_000} for name, s in seconds.items()
    ]
    costs.append({"stage": "report", "status": "waiting", "seconds": None, "peak_rss_bytes": None})
    (folder / "summary.json").write_text(json.dumps({"stages": costs}))
