"""Minnow under lm-eval against lm-eval's own ``hf`` model: the same tasks, checkpoint and threads, taking turns.

Two tasks over drawn text, made here so that nothing is fetched: multiple choice (pages and a question with four options;
log-likelihoods) and generation (greedy, ends at a full stop). Timed is what the model does with the requests, in seconds of
CPU. That both give the same answers in float32 is checked first; then each runs in the better of float32 and bfloat16, and
``hf`` at the best of the batch sizes named.

    python benchmarks/eval_speed.py --questions 60 --rounds 3 --json eval_speed.json

Needs lm-eval (pip install lm-eval).
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from minnow.data.tokenizer import train_tokenizer
from minnow.files import write_json
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_checkpoint, save_checkpoint
from minnow.model.families.lfm2 import lfm2_config
from minnow.rollout import TorchEngine
from minnow.rollout.scoring import TorchScorer
from minnow.rollout.text_engine import LocalTextEngine
from minnow.tasks import PocketWorld

OPTIONS = 4
TYPES = ("float32", "bfloat16")
CHOICE = """\
output_type: multiple_choice
doc_to_choice: '{{options}}'
doc_to_target: '{{label}}'
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITING = """\
output_type: generate_until
doc_to_target: '{{options[0]}}'
generation_kwargs: {until: ['.'], max_gen_toks: 32, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
TASKS = {"choice": ("loglikelihood", CHOICE), "writing": ("generate_until", WRITING)}


def make_model(folder: Path, world: PocketWorld, width: int, layers: int, vocabulary: int) -> None:
    """An LFM2 checkpoint with drawn weights: speed does not depend on what they are."""
    words = train_tokenizer(world.documents(3000), vocabulary)
    kinds = tuple("full_attention" if i % 3 == 2 else "conv" for i in range(layers))
    config = lfm2_config(
        vocab_size=words.vocab_size,
        hidden_size=width,
        intermediate_size=width * 5 // 2,
        layer_types=kinds,
        num_heads=width // 32,
        num_kv_heads=width // 64,
        head_dim=32,
        max_positions=2048,
    )
    model = Backbone(config)
    model.initialise(0)
    save_checkpoint(model, words, folder)


def make_tasks(folder: Path, world: PocketWorld, questions: int) -> None:
    examples = world.examples("question", "train", questions * OPTIONS)
    pages = world.pages("train")
    rows = [
        {
            "text": "\n".join(page.text for page in pages[3 * i : 3 * i + 3]) + f"\n{example.messages[0]['content']}",
            "options": [f" {other.answer['gold']}" for other in examples[i * OPTIONS : (i + 1) * OPTIONS]],
            "label": i % OPTIONS,
        }
        for i, example in enumerate(examples[::OPTIONS])
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, (_, text) in TASKS.items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'data.jsonl'}}}}}\n"
        (folder / f"{name}.yaml").write_text(f"{head}test_split: test\ndoc_to_text: '{{{{text}}}}'\n{text}")


@contextmanager
def timed(lm: Any, method: str, into: list[float]) -> Iterator[None]:
    """CPU seconds that ``lm`` spends in ``method``."""
    plain: Callable[..., Any] = getattr(lm, method)

    def clocked(*given: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return plain(*given, **named)
        finally:
            into.append(time.process_time() - began)

    setattr(lm, method, clocked)
    try:
        yield
    finally:
        delattr(lm, method)


def answers(lm: Any, task: str, manager: Any, seconds: list[float]) -> list[Any]:
    from lm_eval import simple_evaluate

    with timed(lm, TASKS[task][0], seconds):
        found = simple_evaluate(model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True)
    return [sample["resps"] for sample in found["samples"][task]]


def check_equal(task: str, ours: list[Any], theirs: list[Any]) -> None:
    """Log-likelihoods within rounding; generated texts equal but for a near tie in one of fifty."""
    if task == "writing":
        differ = sum(one != other for one, other in zip(ours, theirs, strict=True))
        assert differ <= len(ours) // 50, f"{differ} of {len(ours)} texts differ"
        return
    for one, other in zip(ours, theirs, strict=True):
        for (mine,), (its,) in zip(one, other, strict=True):
            assert abs(mine[0] - its[0]) < 1e-2, f"{mine} against {its}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64], help="batch sizes hf is tried with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        importlib.import_module("lm_eval.models")
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        from minnow.evaluate.lm_eval import MinnowLM

        world = PocketWorld(0, max(1000, 8 * options.questions))
        make_model(folder / "model", world, options.width, options.layers, options.vocabulary)
        make_tasks(folder, world, options.questions)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        ours, theirs = {}, {}
        for kind in TYPES:
            model, words = load_checkpoint(folder / "model")
            model.to(getattr(torch, kind))
            local = LocalTextEngine(TorchEngine(model, words), words, rows=64)
            ours[kind] = MinnowLM(engine=local, scorer=TorchScorer(model, words.pad_id), tokenizer=words, begin=False)
            theirs[kind] = HFLM(pretrained=str(folder / "model"), dtype=kind, device="cpu", batch_size=1)
        document: dict[str, Any] = {"options": {**vars(options), "json": None}, "tasks": {}}
        print(f"{'task':<9}{'hf':>18}{'hf, s':>9}{'minnow':>11}{'minnow, s':>11}{'times':>8}")
        for task in TASKS:
            tried: dict[str, float] = {}
            for kind, lm in theirs.items():
                for size in options.batches:
                    lm.batch_size_per_gpu = size
                    seconds: list[float] = []
                    reference = answers(lm, task, manager, seconds)
                    tried[f"{kind} {size}"] = seconds[0]
                    if kind == TYPES[0]:
                        check_equal(task, answers(ours[kind], task, manager, []), reference)
            own: dict[str, float] = {}
            for kind, lm in ours.items():
                seconds = []
                answers(lm, task, manager, seconds)
                own[kind] = seconds[0]
            best, chosen = min(tried, key=lambda each: tried[each]), min(own, key=lambda each: own[each])
            kind, size = best.split()
            theirs[kind].batch_size_per_gpu = int(size)
            its: list[float] = []
            mine: list[float] = []
            for _ in range(options.rounds):
                answers(theirs[kind], task, manager, its)
                answers(ours[chosen], task, manager, mine)
            ratios = [one / other for one, other in zip(its, mine, strict=True)]
            found = {
                "hf": statistics.median(its),
                "minnow": statistics.median(mine),
                "times": statistics.median(ratios),
            }
            document["tasks"][task] = found | {"hf_tried": tried, "minnow_tried": own, "ratios": ratios}
            print(
                f"{task:<9}{best:>18}{found['hf']:>9.2f}{chosen:>11}{found['minnow']:>11.2f}{found['times']:>8.2f}",
                flush=True,
            )
    if options.json:
        write_json(options.json, document)


if __name__ == "__main__":
    main()
