"""The real stages end to end, in miniature: a whole run, kills in every stage, bad input, a full disk."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from minnow.cli.main import main
from minnow.data.tokenizer import train_tokenizer
from minnow.model.checkpoint import load_checkpoint
from minnow.recipe.report.markup import bytes_text, counted, percent
from minnow.recipe.runner import survey
from minnow.recipe.schema import load_recipe
from minnow.recipe.stages.alignment import REFERENCES
from minnow.recipe.vitals import NOISY
from minnow.tasks import PocketWorld

BEFORE = ("tokenizer", "pretrain", "sft", "measure-sft", "pairs", "dpo", "measure-dpo", "grpo", "measure-grpo")
STAGES = (*BEFORE, "merge", "measure-merge", "export", "profile", "agent", "report")
TRAINED = ("pretrain", "sft", "dpo", "grpo")
pytestmark = pytest.mark.xdist_group("pocket_run")  # one server and one finished run for all
RATE = {"count", "total", "rate", "low", "high"}


@pytest.fixture(scope="module")
def micro() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("micro", Path(__file__).with_name("micro.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["micro"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["micro"]


@pytest.fixture(scope="module")
def server(micro: ModuleType) -> Iterator[Any]:
    server = micro.Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def finished(micro: ModuleType, server: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the whole recipe ran once, uninterrupted. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    micro.write_recipe(folder)
    ended = server.run(folder, "run", "micro.yaml", "--json")
    assert ended.code == 0, ended.err
    assert statuses(ended.out) == dict.fromkeys(STAGES, "ran")
    return folder


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, still finished."""
    return shutil.copytree(finished, tmp_path / "again")


def statuses(out: str) -> dict[str, str]:
    return {row["stage"]: row["status"] for row in json.loads(out)["stages"]}


def strict_json(path: Path) -> Any:
    """JSON as every reader takes it: no NaN and no Infinity."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


def result(folder: Path, stage: str) -> dict[str, Any]:
    return strict_json(folder / "runs/micro" / stage / "result.json")


def lines(folder: Path, stage: str) -> list[dict[str, Any]]:
    text = (folder / "runs/micro" / stage / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def untimed(value: Any) -> Any:
    """A result without what the machine gave it."""
    clocks = {*NOISY, "load_seconds"}
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if key not in clocks}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def assert_same_run(folder: Path, reference: Path, stages: Any = STAGES) -> None:
    """All that does not tell the time is equal: numbers, training curves, and the bytes of the checkpoints."""
    for stage in stages:
        if stage == "profile":
            files = [[(f["file"], f["bytes"]) for f in result(each, stage)["files"]] for each in (folder, reference)]
            assert files[0] == files[1]
            continue
        assert untimed(result(folder, stage)) == untimed(result(reference, stage)), stage
        if stage in TRAINED:
            assert untimed(lines(folder, stage)) == untimed(lines(reference, stage)), stage
        ours = folder / "runs/micro" / stage
        theirs = reference / "runs/micro" / stage
        files = sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
        assert sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file()) == files, stage
        for file in files:
            if file.suffix not in (".json", ".jsonl") or "checkpoint" in file.parts or file.name == "ids.json":
                assert (ours / file).read_bytes() == (theirs / file).read_bytes(), (stage, file)


def until(reached: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.002)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# A whole run


def test_every_stage_leaves_what_the_report_and_the_user_were_promised(finished: Path) -> None:
    for stage in STAGES:
        folder = finished / "runs/micro" / stage
        assert {"config.json", "inputs.json", "result.json", "done.json"} <= {path.name for path in folder.iterdir()}
        assert not (folder / "state").exists()
        strict_json(folder / "result.json")
    assert not [path.name for path in (finished / "runs/micro").rglob("*.tmp")]

    promised = {"parameters", "tokens", "seconds", "tokens_per_second", "final_loss"}
    for stage in ("pretrain", "sft"):
        assert promised <= result(finished, stage).keys()
        steps = [line for line in lines(finished, stage) if "loss" in line]
        assert [line["step"] for line in steps] == list(range(1, 13))
        assert {"step", "tokens", "loss", "learning_rate", "seconds", "tokens_per_second"} <= steps[0].keys()
        assert steps[-1]["loss"] == result(finished, stage)["final_loss"] < steps[0]["loss"]
    measured = [line for line in lines(finished, "pretrain") if "bits_per_byte" in line]
    assert [line["step"] for line in measured] == [0, 5, 10, 12]
    assert {"step", "tokens", "seconds", "held_out_loss", "bits_per_byte"} <= measured[0].keys()
    assert measured[-1]["bits_per_byte"] == result(finished, "pretrain")["bits_per_byte"] < measured[0]["bits_per_byte"]

    for measure in (stage for stage in STAGES if stage.startswith("measure")):
        found = result(finished, measure)
        assert found["stage"] == measure.removeprefix("measure-")
        assert Path(finished, found["checkpoint"]).is_dir() and found["seconds"] > 0
        assert len(found["tasks"]) == 9 and all(rate.keys() >= RATE for rate in found["tasks"].values())
        for loops in found["loops"]:
            assert loops.keys() >= {"temperature", "max_new_tokens", "truncated", "by_task"} | RATE
            assert loops["total"] == 8 == sum(rate["total"] for rate in loops["by_task"].values())
        for example in found["examples"]:
            assert example.keys() == {
                "task", "prompt", "text", "onset_character", "kind", "period", "copies", "temperature",
            }  # fmt: skip
            assert 0 < example["onset_character"] < len(example["text"])
    assert [loops["temperature"] for loops in result(finished, "measure-sft")["loops"]] == [0.0, 1.0]

    pairs = result(finished, "pairs")
    assert pairs.keys() == {
        "prompts",
        "rollouts",
        "pairs",
        "loop_pairs",
        "quality_pairs",
        "all_loop_prompts",
        "fates",
        "judges",
    }
    assert pairs["rollouts"] == 4 * pairs["prompts"] and pairs["pairs"] >= 2
    for stage, steps in (("dpo", 4), ("grpo", 3)):
        found = result(finished, stage)
        assert found["steps"] == steps and found["seconds"] > 0
        history = found["history"]
        assert [entry["step"] for entry in history] == sorted({0, 2, steps})
        assert found["best_step"] in {entry["step"] for entry in history}
        assert all(entry.keys() == {"step", "loop_rate", "task_score"} for entry in history)
    merged = result(finished, "merge")
    assert [candidate["name"] for candidate in merged["candidates"]] == ["grpo", "0.50 grpo + 0.50 dpo"]
    assert merged["kept"] is (merged["chosen"] != "grpo")

    exported = result(finished, "export")["files"]
    assert [entry["type"] for entry in exported] == ["F16", "Q8_0"]
    for entry in exported:
        file = finished / "runs/micro/export" / entry["file"]
        assert file.stat().st_size == entry["bytes"] and entry["tasks"].keys() == {"arithmetic", "extraction"}
        assert entry["positions"] >= 100 and 0 < entry["agreement"] == entry["agree"] / entry["positions"]
        assert entry["max_log_prob_error"] > 0 and entry["perplexity"] > 1
    profiled = result(finished, "profile")
    assert profiled["machine"]["cores"] >= 1 and [entry["type"] for entry in profiled["files"]] == ["F16", "Q8_0"]
    for entry in profiled["files"]:
        assert entry["load_seconds"] > 0 and entry["peak_rss_bytes"] > 2**20 and isinstance(entry["noisy"], bool)
        assert {"tokens", "tokens_per_second", "ttft_ms", "p50_ms", "p95_ms"} <= entry["prefill"][0].keys()
        assert {"depth", "tokens_per_second", "p50_ms", "p95_ms"} <= entry["decode"][0].keys()
    asked = result(finished, "agent")
    for book in ("closed_book", "search"):
        assert {hops: rate["total"] for hops, rate in asked[book].items()} == {"one_hop": 3, "two_hop": 3}
    assert asked["examples"] and all(trace["messages"] for trace in asked["examples"])


def test_the_report_shows_the_runs_numbers(finished: Path) -> None:
    page = (finished / "runs/micro/report.html").read_text()
    assert page.startswith("<!doctype html>") and "NaN" not in page and "None" not in page
    for measure in ("measure-sft", "measure-merge"):
        loops = result(finished, measure)["loops"][0]
        assert percent(loops["rate"]) in page and counted(loops) in page
    for entry in result(finished, "profile")["files"]:
        assert f"{entry['type']}: {bytes_text(entry['bytes'])}" in page
    merged = result(finished, "merge")["candidates"]
    assert all(candidate["name"] in page for candidate in merged)
    record = strict_json(finished / "runs/micro/recipe.json")
    assert record["versions"]["torch"] in page and record["recipe"]["stages"].keys() == set(STAGES)
    summary = strict_json(finished / "runs/micro/summary.json")
    assert summary["status"] == "finished" and summary["report"] == "runs/micro/report.html"


def test_transformers_opens_the_final_checkpoint_with_equal_logits(finished: Path) -> None:
    folder = finished / "runs/micro/merge/checkpoint"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    ours, tokenizer = load_checkpoint(folder)
    messages = [{"role": "user", "content": "Which river runs through Velmora?"}]
    ids = words.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == tokenizer.prompt(messages)
    tokens = torch.tensor([ids])
    with torch.no_grad():
        logits = ours(tokens, None) @ ours.head.T
        np.testing.assert_allclose(logits, theirs(tokens).logits, atol=2e-5)


def test_a_second_run_keeps_every_stage(server: Any, again: Path) -> None:
    before = contents(again / "runs/micro")
    ended = server.run(again, "run", "micro.yaml", "--json")
    assert ended.code == 0 and statuses(ended.out) == dict.fromkeys(STAGES, "kept")
    assert json.loads(ended.out)["seconds"] < 3
    changed = {file for file, content in contents(again / "runs/micro").items() if before.get(file) != content}
    assert changed <= {"recipe.json", "summary.json", ".lock"}


def after(*first: str) -> set[str]:
    """The stages from each of ``first`` to the end of the recipe that depend on it."""
    sft = {"measure-sft", "pairs", "dpo", "measure-dpo", "grpo", "measure-grpo", "merge", "measure-merge"}
    rest = {"measure-merge", "export", "profile", "agent", "report"}
    dependants = {
        "pretrain": {"sft", *sft, *rest},
        "pairs": sft - {"measure-sft"} | rest,
        "dpo": sft - {"measure-sft", "pairs"} | rest,
        "grpo": {"measure-grpo", "merge", *rest},
        "export": {"profile", "report"},
        "agent": {"report"},
    }
    return {name for stage in first for name in (stage, *dependants[stage])}


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("stages.pretrain.training.steps=13", after("pretrain")),
        ("stages.pairs.pairs.periods_kept=2", after("pairs")),
        ("stages.dpo.gate.every=3", after("dpo")),
        ("stages.grpo.rollouts.loop_penalty=0.5", after("grpo")),
        ("stages.export.types=[F16]", after("export")),
        ("stages.agent.questions=2", after("agent")),
        ("model.rope_theta=5e5", set(STAGES) - {"tokenizer"}),
        ("data.entities=400", set(STAGES)),
        ("seed=2", set(STAGES)),
        ("threads=2", set()),
    ],
)
def test_an_edit_would_run_its_stage_and_its_dependants_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, override: str, stages: set[str]
) -> None:
    monkeypatch.chdir(finished)
    planned = {row["stage"]: row["action"] for row in survey(load_recipe(Path("micro.yaml"), [override]))}
    assert {name for name, action in planned.items() if action != "keep"} == stages


def test_an_edited_stage_and_its_dependants_run_again_and_no_other(server: Any, again: Path) -> None:
    ended = server.run(again, "run", "micro.yaml", "--set", "stages.agent.questions=2", "--json")
    assert ended.code == 0, ended.err
    expected = {name: "ran" if name in ("agent", "report") else "kept" for name in STAGES}
    assert statuses(ended.out) == expected
    assert result(again, "agent")["search"]["one_hop"]["total"] == 2


def test_a_report_that_was_deleted_is_made_again(server: Any, again: Path) -> None:
    page = again / "runs/micro/report.html"
    page.unlink()
    ended = server.run(again, "run", "micro.yaml", "--json")
    assert ended.code == 0 and page.exists()
    assert statuses(ended.out) == {**dict.fromkeys(STAGES, "kept"), "report": "ran"}


# Stops


def test_a_run_killed_in_every_stage_ends_with_the_results_of_one_that_was_not(
    micro: ModuleType, server: Any, finished: Path, tmp_path: Path
) -> None:
    """Each stage is killed twice: as one of its files is about to appear, and after some time."""
    draw = random.Random(20)
    folder = tmp_path / "killed"
    micro.write_recipe(folder)
    written = [Path(line) for line in (finished / "writes.txt").read_text().splitlines()]
    missed = 0
    for stage in STAGES:
        home = Path("runs/micro") / stage
        done = folder / home / "done.json"
        if done.exists():
            missed += 1  # this process slept, and the one to be killed ran on
            continue
        writes = sum(path.is_relative_to(home) for path in written)
        ended = server.run(folder, "run", "micro.yaml", at=(stage, draw.randint(1, writes), signal.SIGKILL))
        assert ended.code == -signal.SIGKILL and not done.exists(), ended.err

        child = server.start(folder, "run", "micro.yaml")
        moment = time.monotonic() + draw.uniform(0, strict_json(finished / home / "done.json")["seconds"])
        until(lambda moment=moment, done=done: time.monotonic() > moment or done.exists())
        with contextlib.suppress(ProcessLookupError):  # the last stage may be the end of it
            os.kill(child, signal.SIGKILL)
        assert server.wait().code in (-signal.SIGKILL, 0)
    assert missed <= 3
    ended = server.run(folder, "run", "micro.yaml", "--json")
    assert ended.code == 0, ended.err
    assert_same_run(folder, finished)
    assert not [path for path in (folder / "runs/micro").rglob(".*") if path.name not in (".lock", REFERENCES)]


def writes_of(finished: Path, stage: str, name: str) -> list[int]:
    """At which of the stage's writes ``name`` appears, from 1."""
    home = Path("runs/micro") / stage
    written = [Path(line) for line in (finished / "writes.txt").read_text().splitlines()]
    written = [path for path in written if path.is_relative_to(home)]
    return [place for place, path in enumerate(written, start=1) if path.name == name]


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_ctrl_c_saves_exits_130_and_the_same_command_continues(
    server: Any, finished: Path, again: Path, stage: str
) -> None:
    shutil.rmtree(again / "runs/micro" / stage)
    third = writes_of(finished, stage, "train.pt")[2]
    ended = server.run(again, "run", "micro.yaml", "--only", stage, at=(stage, third, signal.SIGINT))
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == f"minnow: stopped in {stage}; run the same command to continue"
    assert strict_json(again / "runs/micro/summary.json")["status"] == "stopped"
    ended = server.run(again, "run", "micro.yaml", "--only", stage, "--json")
    assert ended.code == 0 and f"{stage}: continues where it stopped" in ended.err
    assert_same_run(again, finished, [stage])


def test_a_second_run_on_a_folder_in_use_is_refused(
    server: Any, finished: Path, again: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(again / "runs/micro/sft")
    child = server.start(again, "run", "micro.yaml", "--only", "sft", at=("sft", 3, signal.SIGSTOP))
    stat = Path(f"/proc/{child}/stat")
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    monkeypatch.chdir(again)
    assert main(["run", "micro.yaml"]) == 2
    refused = f"minnow: runs/micro is in use by process {child}; wait for it, stop it, or choose another --run-folder\n"
    assert capsys.readouterr() == ("", refused)
    os.kill(child, signal.SIGCONT)
    assert server.wait().code == 0
    assert_same_run(again, finished, ["sft"])


# Damage


def test_damaged_training_state_is_named_and_deleting_it_trains_again(server: Any, finished: Path, again: Path) -> None:
    shutil.rmtree(again / "runs/micro/sft")
    place = writes_of(finished, "sft", "train.pt")[4]
    ended = server.run(again, "run", "micro.yaml", "--only", "sft", at=("sft", place, signal.SIGKILL))
    state = again / "runs/micro/sft/state/train.pt"
    whole = state.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:1000] + bytes(4000) + whole[5000:]):
        state.write_bytes(damaged)
        ended = server.run(again, "run", "micro.yaml", "--only", "sft")
        last = ended.err.splitlines()[-1]
        assert ended.code == 2 and last.startswith("minnow: runs/micro/sft/state/train.pt is damaged"), ended.err
        assert "delete it to train this stage from its beginning" in last and "Traceback" not in ended.err
    state.unlink()
    assert server.run(again, "run", "micro.yaml", "--only", "sft").code == 0
    assert_same_run(again, finished, ["sft"])


def test_a_checkpoint_with_another_tokenizer_is_made_again_before_it_is_used(
    server: Any, finished: Path, again: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = again / "runs/micro/merge/checkpoint"
    other = train_tokenizer(PocketWorld(7, 300).documents(300), 900)
    other.save(checkpoint)
    monkeypatch.chdir(again)
    assert main(["loops", "measure", "runs/micro/merge/checkpoint", "--n", "4"]) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("minnow: runs/micro/merge/checkpoint: the tokenizer has") and "another" in sentence

    ended = server.run(again, "run", "micro.yaml", "--only", "agent")
    assert ended.code == 2 and "runs after merge, which must be finished first" in ended.err
    ended = server.run(again, "run", "micro.yaml", "--json")
    assert ended.code == 0, ended.err
    assert "checkpoint/tokenizer_config.json is gone or was changed, runs again" in ended.err or (
        "checkpoint/tokenizer.json is gone or was changed, runs again" in ended.err
    )
    assert statuses(ended.out)["merge"] == "ran" and statuses(ended.out)["grpo"] == "kept"
    assert_same_run(again, finished)


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of its own of so many bytes, where this process may make one."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a small tmpfs cannot be mounted here")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def test_a_disk_that_fills_during_a_save_costs_nothing_that_was_saved(
    server: Any, finished: Path, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(64 << 20)
    folder = shutil.copytree(finished, disk / "again")
    for stage in STAGES[3:]:
        shutil.rmtree(folder / "runs/micro" / stage)
    before = {stage: contents(folder / "runs/micro" / stage) for stage in ("tokenizer", "pretrain")}
    shutil.rmtree(folder / "runs/micro/sft")
    ballast = disk / "ballast"
    failed = []
    # From no room at all to room for the training state but not for the checkpoint beside it.
    for room in (0, 200_000, 600_000, 1_500_000, 2_200_000, 2_600_000):
        ballast.unlink(missing_ok=True)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - room))
        ended = server.run(folder, "run", "micro.yaml", "--only", "sft")
        if ended.code == 0:
            break
        failed.append(room)
        last = ended.err.splitlines()[-1]
        assert ended.code == 2 and last.startswith("minnow: ") and "free some space" in last, ended.err
        assert "Traceback" not in ended.err and ended.err.count("minnow: ") == 1
        for stage, files in before.items():
            assert contents(folder / "runs/micro" / stage) == files
        load_checkpoint(folder / "runs/micro/pretrain/checkpoint")
        assert not (folder / "runs/micro/sft/done.json").exists()
    assert len(failed) >= 4
    ballast.unlink()
    ended = server.run(folder, "run", "micro.yaml", "--only", "sft")
    assert ended.code == 0, ended.err
    assert_same_run(folder, finished, ["tokenizer", "pretrain", "sft"])
