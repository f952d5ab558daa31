"""The metric in lm-eval's calling convention, and in a task of its own where lm-eval is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from minnow.loops.integrations.lm_eval import loop_rate

LOOP = "The town of Anse lies by the river. " * 12
CLEAN = "The town of Anse lies by the river, and its people trade salt for grain in the market below the old bridge."


def test_the_convention_of_a_metric() -> None:
    # ``ConfigurableTask.process_results`` calls it once for each document.
    assert loop_rate(references=["42"], predictions=[LOOP]) == 1.0
    assert loop_rate(references=["42"], predictions=[CLEAN], ignore_case=True) == 0.0
    assert loop_rate([["42"]], [[LOOP, CLEAN, "", LOOP]]) == 0.5
    assert loop_rate([], []) == 0.0


UTILS = "from minnow.loops.integrations.lm_eval import loop_rate\n"
TASK = """
task: towns
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], max_gen_toks: 64}}
metric_list:
  - metric: !function utils.loop_rate
    aggregation: mean
    higher_is_better: false
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def test_the_documentation_shows_what_is_tested() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/loops.md").read_text(encoding="utf-8")
    assert page.partition("```yaml\n")[2].partition("```")[0] in TASK


def test_in_a_task_of_lm_evals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/utils.py").write_text(UTILS)
    (tmp_path / "data.jsonl").write_text(
        '{"question": "One?", "answer": "a"}\n' * 3 + '{"question": "Two?", "answer": "b"}\n'
    )
    (tmp_path / "tasks/towns.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))

    class Answers(LM):
        def generate_until(self, requests, disable_tqdm=False):  # type: ignore[no-untyped-def]
            return [LOOP if "One" in request.args[0] else CLEAN for request in requests]

        def loglikelihood(self, requests):  # type: ignore[no-untyped-def]
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    tasks = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    found = lm_eval.simple_evaluate(model=Answers(), tasks=["towns"], task_manager=tasks, bootstrap_iters=0)
    assert found["results"]["towns"]["loop_rate,none"] == 0.75
    assert found["results"]["towns"]["exact_match,none"] == 0.0
