"""Every task of lm-evaluation-harness on Minnow's models and engines.

lm-eval is optional (``pip install lm-eval``). Log-likelihoods come from a :class:`minnow.rollout.scoring.Scorer`,
generations from any text engine; of a server only the latter.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.evaluate.text import log_likelihood
from minnow.loops import Rate
from minnow.loops.find import find_text_loops
from minnow.model.checkpoint import load_checkpoint
from minnow.rollout import Engine, Sampling, TorchEngine
from minnow.rollout.scoring import Scorer, TorchScorer
from minnow.rollout.text_engine import ChatPrompt, LocalTextEngine, TextEngine, answer_all
from minnow.train.precision import compute_dtype

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.tasks import TaskManager
except ModuleNotFoundError as error:
    raise UserError(
        f"tasks of lm-evaluation-harness need the package lm-eval ({error.name} is missing); run: pip install lm-eval"
    ) from error

_ANSWER_TOKENS = 256  # lm-eval's own default
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@register_model("minnow")
class MinnowLM(TemplateLM):
    """A model of Minnow's as lm-eval takes one; ``--model minnow --model_args pretrained=FOLDER`` opens a checkpoint.

    Args:
        pretrained: a checkpoint folder; or leave it out and give ``engine``, and for log-likelihoods ``scorer``.
        tokenizer: of a local engine.
        context: positions of the model.
        begin: put the tokenizer's start token before every text, as Minnow's models are trained.

    Attributes:
        answers: by lm-eval's task name, each generated text and whether it was cut at its budget.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        engine: TextEngine | None = None,
        scorer: Scorer | None = None,
        tokenizer: Tokenizer | None = None,
        context: int = 2048,
        begin: bool = True,
        **ignored: Any,
    ) -> None:
        super().__init__()
        if pretrained is not None:
            model, tokenizer = load_checkpoint(Path(pretrained))
            model.to(compute_dtype())
            torch_engine = TorchEngine(model, tokenizer)
            engine = LocalTextEngine(torch_engine, tokenizer, torch_engine.rows)
            scorer, context = TorchScorer(model, tokenizer.pad_id), model.config.max_positions
        if engine is None:
            raise UserError("lm-eval's model minnow needs pretrained=FOLDER, or an engine")
        self.engine, self.scorer, self.words, self.context, self.begin = engine, scorer, tokenizer, context, begin
        self.answers: dict[str, list[tuple[str, bool]]] = defaultdict(list)

    @property
    def eot_token_id(self) -> int:
        return self._words.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self._words.eos_id if self._words.bos_id is None else self._words.bos_id

    @property
    def tokenizer_name(self) -> str:
        return "" if self.words is None else self.words.digest

    @property
    def _words(self) -> Tokenizer:
        if self.words is None:
            raise UserError(
                "a server gives no log-likelihoods of given texts; choose tasks that generate their answers"
            )
        return self.words

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **ignored: Any) -> list[int]:
        """Ids with special tokens recognised, the start token before them unless it is there or not wanted."""
        ids = self._words.encode_chat(string)
        start = self._words.begin if self.begin and add_special_tokens is not False else []
        return ids if ids[: len(start)] == start else [*start, *ids]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The history up to where the model's answer begins, or, without a new turn, goes on."""
        begun = [] if add_generation_prompt else chat_history[-1:]
        ids = self._words.prompt(chat_history[: len(chat_history) - len(begun)])
        return self._words.decode(ids, keep_special=True) + "".join(each["content"] for each in begun)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **ignored: Any) -> list[tuple[float, bool]]:
        """A context that leaves no room is cut from the left, as lm-eval's own models do."""
        pairs = []
        for _, context, continuation in requests:
            room = self.context + 1 - len(continuation)
            if room < 1:
                raise UserError(f"a continuation of {len(continuation)} tokens exceeds the context of {self.context}")
            pairs.append((context[-room:], continuation))
        return [tuple(each) for each in self._scorer.log_likelihoods(pairs)]  # type: ignore[misc]

    @property
    def _scorer(self) -> Scorer:
        if self.scorer is None:
            raise UserError(
                "this engine gives no log-likelihoods of given texts; choose tasks that generate their answers"
            )
        return self.scorer

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        texts = [self._words.encode_chat(request.args[0]) for request in requests]
        return log_likelihood(self._scorer, texts, self.prefix_token_id, self.context)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        contexts = [request.args[0] for request in requests]
        samplings = [_sampling(request.args[1]) for request in requests]
        engine = self.engine
        if isinstance(engine, LocalTextEngine):
            found = self._generate(engine.engine, contexts, samplings)
        else:
            prompts = [
                ChatPrompt(str(place), [{"role": "user", "content": each}], raw=True)
                for place, each in enumerate(contexts)
            ]
            answers = answer_all(engine, prompts, samplings)
            failed = [each.error for each in answers if each.finish_reason == "failed"]
            if failed:
                raise UserError(
                    f"{len(failed)} of {len(answers)} requests were not answered; the first said: {failed[0]}"
                )
            found = [(each.text, each.finish_reason) for each in answers]
        out = []
        for request, sampling, (text, reason) in zip(requests, samplings, found, strict=True):
            cut = min((at for each in sampling.until if (at := text.find(each)) >= 0), default=len(text))
            self.answers[request.task_name].append((text, reason != "stop" and cut == len(text)))
            out.append(text[:cut])
        return out

    def _generate(
        self, engine: Engine, contexts: Sequence[str], samplings: Sequence[Sampling]
    ) -> list[tuple[str, str]]:
        prompts = []
        for place, (context, sampling) in enumerate(zip(contexts, samplings, strict=True)):
            room = self.context - sampling.max_new_tokens
            if room < 1:
                raise UserError(f"answers of {sampling.max_new_tokens} tokens exceed the context of {self.context}")
            prompts.append((str(place), self.tok_encode(context)[-room:]))
        rollouts = engine.generate(prompts, samplings)
        return [(self._words.decode(each.token_ids), each.finish_reason) for each in rollouts]

    def loops(self, task: str) -> Rate:
        """How many of a task's generated answers were cut in a loop."""
        answers = self.answers[task]
        found = find_text_loops([text for text, _ in answers])
        return Rate(sum(cut and loop is not None for (_, cut), loop in zip(answers, found, strict=True)), len(answers))


def _sampling(given: dict[str, Any]) -> Sampling:
    until = given.get("until") or ()
    limit = next((given[name] for name in _LIMITS if given.get(name) is not None), _ANSWER_TOKENS)
    temperature = float(given.get("temperature") or 0.0) if given.get("do_sample") else 0.0
    texts = (until,) if isinstance(until, str) else tuple(until)
    return Sampling(temperature, int(limit), stop_on_loop=False, until=tuple(filter(None, texts)))


def run_tasks(lm: MinnowLM, tasks: Sequence[str], n: int | None) -> dict[str, dict[str, Any]]:
    """lm-eval's numbers by task: its metrics with standard errors, ``n``, and the loop rate of what was generated.

    Args:
        tasks: lm-eval's names, or YAML files of tasks in its form.

    Raises:
        UserError: lm-eval has no such task, or cannot get its data.
    """
    files = [Path(name) for name in tasks if name.endswith((".yaml", ".yml"))]
    names = [_task_name(Path(name)) if Path(name) in files else name for name in tasks]
    # Its own tasks are thousands of files, which take a minute to look through.
    manager = TaskManager(
        include_path=[str(file.parent) for file in files] or None, include_defaults=len(files) < len(tasks)
    )
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UserError(f"lm-eval has no task {unknown[0]!r}; `lm_eval ls tasks` lists them")
    found = simple_evaluate(model=lm, tasks=names, task_manager=manager, limit=n, bootstrap_iters=0, log_samples=False)
    return {
        name: {
            "metrics": {key: value for key, value in numbers.items() if isinstance(value, int | float) and "," in key},
            "n": found["n-samples"].get(name, {}).get("effective"),
            "loops": lm.loops(name).as_dict() if name in lm.answers else None,
        }
        for name, numbers in found["results"].items()
    }


def _task_name(file: Path) -> str:
    """What a YAML file calls its task; such a file has tags of lm-eval's that no plain reader knows."""
    if not file.is_file():
        raise UserError(f"there is no task file {file}; check the path")
    found = re.search(r"^task:\s*(\S+)\s*$", file.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise UserError(f"{file} names no task; write 'task: NAME', as lm-eval's own files do")
    return found[1].strip("\"'")
