"""`minnow run` as a process of its own: signals, kills, locks, full disks and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOYS = ROOT / "tests/recipe/toy_stages.py"
MODEL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "layers": ["conv", "attn"],
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 32,
    "vocab_size": 512,
}
STAGES = {"count": {"steps": 24, "seconds_per_step": 0.05}, "double": {}, "report": {}}


class Folder:
    """A folder with a recipe in which commands run."""

    def __init__(self, path: Path, stages: dict[str, Any]) -> None:
        self.path = path
        self.started: list[subprocess.Popen[str]] = []
        document = {"name": "toy", "model": MODEL, "stages": stages}
        (path / "toy.yaml").write_text(yaml.safe_dump(document, sort_keys=False))

    def start(self, *flags: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        process = subprocess.Popen(
            [sys.executable, str(TOYS), "run", "toy.yaml", *flags],
            cwd=self.path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def finish(self, *flags: str) -> tuple[int, str, str]:
        process = self.start(*flags)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def await_step(self, step: int) -> None:
        """Until the count stage has saved ``step`` or a later one."""
        saved = self.path / "runs/toy/count/state/step"
        deadline = time.monotonic() + 30
        while not (saved.exists() and saved.read_text() and int(saved.read_text()) >= step):
            assert time.monotonic() < deadline, "the stage did not get there"
            time.sleep(0.01)

    def json(self, file: str) -> Any:
        return json.loads((self.path / "runs/toy" / file).read_text())

    def steps(self) -> list[int]:
        lines = (self.path / "runs/toy/count/metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Callable[..., Folder]]:
    made: list[Folder] = []

    def make(stages: dict[str, Any] = STAGES, path: Path = tmp_path) -> Folder:
        made.append(Folder(path, stages))
        return made[-1]

    yield make
    for process in [process for one in made for process in one.started]:
        if process.poll() is None:
            process.kill()
        process.communicate()


QUICK = "stages.count.seconds_per_step=0"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_stopped_run_continues_from_its_last_checkpoint(
    folder: Callable[..., Folder], number: signal.Signals, code: int
) -> None:
    here = folder()
    process = here.start()
    here.await_step(6)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    if number != signal.SIGKILL:
        assert err.rstrip().endswith("minnow: stopped in count; run the same command to continue")
        assert here.json("summary.json")["status"] == "stopped"
        assert "Traceback" not in err
    assert not (here.path / "runs/toy/count/done.json").exists()
    returned, out, err = here.finish("--json")
    assert returned == 0 and "count: continues where it stopped" in err
    summary = json.loads(out)
    assert [row["status"] for row in summary["stages"]] == ["ran", "ran", "ran"]
    assert here.json("count/result.json")["resumed_at"] >= 6
    assert here.steps() == list(range(1, 25))
    assert here.json("double/result.json")["count"] == 48


def test_a_stage_that_swallows_the_interrupt_is_not_taken_for_finished(folder: Callable[..., Folder]) -> None:
    here = folder({"swallow": {}})
    process = here.start()
    started = here.path / "runs/toy/swallow/state/started"
    deadline = time.monotonic() + 30
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert started.exists() and not (here.path / "runs/toy/swallow/done.json").exists()


def test_interrupted_with_from_the_message_says_how_to_continue(folder: Callable[..., Folder]) -> None:
    here = folder()
    process = here.start("--from", "count")
    here.await_step(2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert "run the same command without --from to continue" in err


def test_a_second_run_on_the_folder_is_refused_and_the_first_goes_on(folder: Callable[..., Folder]) -> None:
    here = folder()
    first = here.start()
    here.await_step(2)
    first.send_signal(signal.SIGSTOP)  # or it might end before the second has started
    code, out, err = here.finish()
    first.send_signal(signal.SIGCONT)
    assert (code, out) == (2, "")
    assert err.startswith(f"minnow: runs/toy is in use by process {first.pid}; ")
    first.communicate(timeout=60)
    assert first.returncode == 0 and here.steps() == list(range(1, 25))


def test_the_lock_of_a_killed_run_is_free(folder: Callable[..., Folder]) -> None:
    here = folder()
    process = here.start()
    here.await_step(2)
    process.kill()
    process.communicate()
    assert here.finish("--only", "count")[0] == 0


def test_numbers_go_to_stdout_and_the_log_to_stderr(folder: Callable[..., Folder]) -> None:
    here = folder()
    code, out, err = here.finish("--set", QUICK, "--set", "stages.double.factor=3", "--run-folder", "elsewhere")
    assert code == 0 and "count: finished in" in err
    assert out.splitlines()[-1] == "report: elsewhere/report.html"
    assert [line.split()[:2] for line in out.splitlines()[:3]] == [
        ["count", "ran"],
        ["double", "ran"],
        ["report", "ran"],
    ]
    assert json.loads((here.path / "elsewhere/double/result.json").read_text())["count"] == 72


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--set", "stages.count.setps=1"], "minnow: toy.yaml: stages.count.setps: unknown key; did you mean steps?\n"),
        (["--from", "dubble"], "minnow: --from dubble: the recipe has no such stage; did you mean double?\n"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(folder: Callable[..., Folder], flags: list[str], sentence: str) -> None:
    here = folder()
    assert here.finish(*flags) == (2, "", sentence)
    assert not (here.path / "runs").exists()


def test_a_dry_run_prints_the_plan_and_what_each_stage_would_do_and_writes_nothing(
    folder: Callable[..., Folder],
) -> None:
    here = folder()
    code, out, _ = here.finish("--dry-run")
    assert code == 0 and out.splitlines() == [
        "the plan of toy",
        "",
        "count   runs",
        "double  runs after count",
        "report  runs after count, double",
    ]
    assert not (here.path / "runs").exists()
    assert here.finish("--set", QUICK)[0] == 0
    before = sorted((str(path), path.stat().st_mtime_ns) for path in here.path.rglob("*"))
    code, out, _ = here.finish("--set", QUICK, "--set", "stages.double.factor=4", "--dry-run", "--json")
    document = json.loads(out)
    assert code == 0 and document["plan"] == {"name": "toy"}
    assert [row["action"] for row in document["stages"]] == ["keep", "run", "run"]
    assert sorted((str(path), path.stat().st_mtime_ns) for path in here.path.rglob("*")) == before


def test_a_really_full_disk_is_one_sentence_and_freeing_space_continues(
    folder: Callable[..., Folder], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        here = folder(path=small)
        ballast = small / "ballast"
        assert here.finish("--set", QUICK, "--only", "count")[0] == 0
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4096))
        kept = (small / "runs/toy/count/done.json").read_bytes()
        code, _, err = here.finish("--set", QUICK)
        assert code == 2 and "No space left on device" in err and "Traceback" not in err
        assert (small / "runs/toy/count/done.json").read_bytes() == kept
        ballast.unlink()
        code, out, err = here.finish("--set", QUICK, "--json")
        assert [row["status"] for row in json.loads(out)["stages"]] == ["kept", "ran", "ran"]
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
