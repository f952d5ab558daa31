"""Training loops as their users run them, each in a process of its own that takes steps when told.

Run as a script (``contestants.py WAY JOB.json``) it is such a process: it starts the project's own loop, waits at the end
of a step until a line on stdin says what comes next (``steps N`` or ``held-out``), and answers with a line of JSON. So
several can take turns on one machine, and one that waits costs nothing. Minnow and transformers are imported only by the
processes that run them: litgpt needs another huggingface-hub than transformers, hence a Python of its own.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WAYS = {
    "minnow": "Minnow",
    "hf": "HF Trainer, defaults",
    "hf-bf16": "HF Trainer, bf16",
    "hf-best": "HF Trainer, bf16 + compile",
    "litgpt": "litgpt, bf16 + compile",
}
SHAPES = {
    ("llama", "7m"): {"width": 256, "inner": 704, "layers": 4, "heads": 4, "kv": 4, "tied": False},
    ("llama", "60m"): {"width": 768, "inner": 2048, "layers": 7, "heads": 12, "kv": 12, "tied": False},
    ("lfm2", "7m"): {"width": 256, "inner": 704, "layers": 6, "heads": 4, "kv": 1, "tied": True},
    ("lfm2", "60m"): {"width": 768, "inner": 2048, "layers": 8, "heads": 12, "kv": 3, "tied": True},
}
VOCABULARY = 8192
END = 7
"""Id of ``<|im_end|>``, which ends a document in Minnow's tokenizers."""


@dataclass(frozen=True)
class Job:
    """What every contestant trains on.

    Attributes:
        data: int32 ``[N, length + 1]`` rows of token ids, as ``.npy``.
        held_out: rows to measure on, likewise; "" for none.
        rows: per step.
        steps: planned in all; the learning rate follows them.
        learning_rate, warmup: for every way but HF Trainer's defaults; ``warmup`` is a share of the steps.
        muon: what Minnow updates matrices with; else AdamW, as the others do.
    """

    family: str
    size: str
    data: str
    rows: int
    length: int
    steps: int
    threads: int
    seed: int = 0
    held_out: str = ""
    learning_rate: float = 1e-3
    warmup: float = 0.02
    muon: bool = False


class Contestant:
    """The other end of such a process."""

    def __init__(self, way: str, job: Job, python: str = sys.executable) -> None:
        self.way = way
        self._log = tempfile.NamedTemporaryFile("w+", suffix=f"-{way}.log")  # noqa: SIM115  lives as long as this
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [python, __file__, way, json.dumps(asdict(job))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment,
        )  # fmt: skip

    def ask(self, order: str) -> dict[str, Any]:
        """``steps N`` -> ``wall``, ``cpu`` (seconds), ``peak_bytes``; ``held-out`` -> ``nats`` per token."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.way} ended:\n{Path(self._log.name).read_text()[-2000:]}")
        return dict(json.loads(answer))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # it ends where it waits for the next order
        self._process.wait()


class Turns:
    """In the contestant's process: where its loop calls in."""

    def __init__(self, job: Job) -> None:
        self.job, self.left = job, 0
        self.loss: Callable[[Tensor], Tensor] | None = None
        """Of ids ``[B, T + 1]``, summed over the targets, in nats."""
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what the libraries print is no answer

    def wait(self) -> None:
        """Until there are steps to take."""
        while not self.left:
            order, _, number = sys.stdin.readline().strip().partition(" ")
            if order == "steps":
                self.left = self.asked = int(number)
            elif order == "held-out":
                self._answer(nats=self._held_out())
            else:
                os._exit(0)
        self.began = time.perf_counter(), time.process_time()

    def step_done(self) -> None:
        """Called by the loop after each step."""
        self.left -= 1
        if not self.left:
            wall, cpu = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            self._answer(wall=wall, cpu=cpu, peak_bytes=peak)
            self.wait()

    def _answer(self, **values: float) -> None:
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()

    @torch.no_grad()
    def _held_out(self) -> float:
        assert self.loss is not None
        rows = torch.from_numpy(np.load(self.job.held_out).astype(np.int64))
        parts = rows[: len(rows) // self.job.rows * self.job.rows].split(self.job.rows)  # of one shape, for compilers
        return sum(float(self.loss(part)) for part in parts) / (sum(map(len, parts)) * self.job.length)


def _row_order(job: Job) -> Iterator[int]:
    """Rows of the data, each once per epoch."""
    count, epoch = len(np.load(job.data, mmap_mode="r")), 0
    while True:
        yield from np.random.default_rng([job.seed, epoch]).permutation(count).tolist()
        epoch += 1


def _of_logits(logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def loss(rows: Tensor) -> Tensor:
        return F.cross_entropy(logits(rows[:, :-1]).flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="sum")

    return loss


def hf_config(family: str, size: str) -> Any:
    """The network in transformers' terms."""
    import transformers

    shape = SHAPES[family, size]
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": shape["width"], "intermediate_size": shape["inner"],
        "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv"], "tie_word_embeddings": shape["tied"], "max_position_embeddings": 4096,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": END, "use_cache": False,
    }  # fmt: skip
    if family == "llama":
        return transformers.LlamaConfig(**common)
    kinds = ["full_attention" if i % 3 == 2 else "conv" for i in range(shape["layers"])]
    return transformers.Lfm2Config(**common, layer_types=kinds, block_auto_adjust_ff_dim=False)


def _minnow(job: Job, turns: Turns) -> None:
    from minnow.data.loader import Batch, Loader
    from minnow.data.packing import Packed
    from minnow.model.backbone import Backbone
    from minnow.model.config import ModelConfig
    from minnow.train.batches import Prefetch
    from minnow.train.loop import Trainer, TrainSettings
    from minnow.train.objectives import next_token
    from minnow.train.optimizer import OptimizerSettings

    torch.set_num_threads(job.threads)
    rows = np.load(job.data)
    # Documents end where their end token stands, and see nothing of each other, as in a stage's packed rows.
    documents = 1 + np.cumsum(np.pad(rows[:, :-2] == END, ((0, 0), (1, 0))), 1)
    targets = np.where(rows[:, :-1] == END, -100, rows[:, 1:])
    packed = Packed(rows[:, :-1], targets.astype(np.int32), documents.astype(np.int16))
    loader = Loader(packed, job.rows, job.seed)
    model = Backbone(ModelConfig.from_hf(hf_config(job.family, job.size).to_dict()))
    model.initialise(job.seed)
    optimizer = OptimizerSettings(learning_rate=job.learning_rate, muon=job.muon)
    settings = TrainSettings(job.steps, optimizer, warmup=job.warmup, decay=0.5, save_seconds=math.inf)

    def loss(ids: Tensor) -> Tensor:
        return next_token(model, Batch(ids[:, :-1], ids[:, 1:], torch.ones_like(ids[:, 1:]))).total

    turns.loss = loss
    with tempfile.TemporaryDirectory() as folder:
        source = Prefetch(lambda step: [loader.batch(step)])
        trainer = Trainer(model, next_token, source, settings, lambda **line: None, Path(folder, "state.pt"))
        turns.wait()
        trainer.run(progress=lambda steps, note: turns.step_done())


def _hugging_face(job: Job, turns: Turns, **chosen: Any) -> None:
    import transformers

    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    model = transformers.AutoModelForCausalLM.from_config(hf_config(job.family, job.size), dtype=torch.float32)
    data = np.load(job.data)
    order = _row_order(job)

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for i in order:
                row = torch.from_numpy(data[i, :-1].astype(np.int64))
                yield {"input_ids": row, "labels": row}

    class CallIn(transformers.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.step_done()

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, use_cpu=True, per_device_train_batch_size=job.rows, max_steps=job.steps, seed=job.seed,
            report_to="none", save_strategy="no", disable_tqdm=True, **chosen,
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=Rows(), callbacks=[CallIn()])
        turns.loss = _of_logits(lambda ids: trainer.model_wrapped(input_ids=ids).logits)
        trainer.train()


def _best_of_hugging_face(job: Job) -> dict[str, Any]:
    """Mixed precision and, for learning, what Minnow's AdamW and pre-training at large use."""
    return {
        "bf16": True, "learning_rate": job.learning_rate, "lr_scheduler_type": "cosine",
        "warmup_steps": round(job.warmup * job.steps), "weight_decay": 0.1, "adam_beta2": 0.95,
    }  # fmt: skip


def _litgpt(job: Job, turns: Turns) -> None:
    from litgpt import pretrain
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.config import Config
    from litgpt.data import DataModule

    torch.set_num_threads(job.threads)
    shape, data = SHAPES[job.family, job.size], np.load(job.data)

    class Stream(torch.utils.data.IterableDataset):
        """Rows without end; asked for the next step's first row, the step before is done."""

        def __init__(self, calls_in: bool) -> None:
            self.calls_in = calls_in

        def __iter__(self) -> Iterator[Tensor]:
            for count, i in enumerate(_row_order(job)):
                if self.calls_in and count % job.rows == 0:
                    turns.step_done() if count else turns.wait()
                yield torch.from_numpy(data[i].astype(np.int64))

    class Data(DataModule):
        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(Stream(True), batch_size=job.rows)

        def val_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(Stream(False), batch_size=job.rows)

    config = Config(
        name="contestant", block_size=job.length, n_layer=shape["layers"], n_embd=shape["width"],
        vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY, n_head=shape["heads"], n_query_groups=shape["kv"],
        intermediate_size=shape["inner"], rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
    )  # fmt: skip
    train = TrainArgs(
        save_interval=None, log_interval=10, global_batch_size=job.rows, micro_batch_size=job.rows,
        lr_warmup_steps=max(1, round(job.warmup * job.steps)), max_tokens=(job.steps + 1) * job.rows * job.length,
        max_norm=1.0, min_lr=0.1 * job.learning_rate, tie_embeddings=False,
    )  # fmt: skip
    settings = {"lr": job.learning_rate, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    fit = pretrain.fit

    def keep(**values: Any) -> None:
        turns.loss = _of_logits(values["state"]["model"])
        fit(**values)

    pretrain.fit = keep
    with tempfile.TemporaryDirectory() as folder:
        pretrain.setup(
            "contestant", config, Path(folder), "bf16-mixed", data=Data(), train=train, devices=1,
            eval=EvalArgs(interval=10**9, final_validation=False), logger_name="csv", seed=job.seed,
            optimizer={"class_path": "torch.optim.AdamW", "init_args": settings},
        )  # fmt: skip


def main() -> None:
    way, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    turns = Turns(job)
    if way == "minnow":
        _minnow(job, turns)
    elif way == "litgpt":
        _litgpt(job, turns)
    else:
        chosen = {} if way == "hf" else _best_of_hugging_face(job) | {"torch_compile": way == "hf-best"}
        _hugging_face(job, turns, **chosen)
    turns.wait()


if __name__ == "__main__":
    main()
