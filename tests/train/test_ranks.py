"""One rank or several: the same rows, losses and weights; and what happens when one of them goes.

All runs are of the toy of run_and_die.py over gloo; run_ranks.py makes them, one after another, in one process that the
ranks are forked from.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_model
from minnow.model.config import ModelConfig
from minnow.model.families.lfm2 import lfm2_config
from minnow.train.expert_parallel import share_experts
from minnow.train.many_ranks import _connect
from minnow.train.optimizer import OptimizerSettings
from minnow.train.parallel import Parallel
from minnow.train.ranks import Ranks, joined

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]

SCRIPT = Path(__file__).with_name("run_ranks.py")
STEPS = 6


def _toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_and_die", SCRIPT.with_name("run_and_die.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toy = _toy()


@dataclass
class Phase:
    """How one run ended and what each of its ranks told."""

    folder: Path
    codes: list[int]
    seconds: float
    told: list[dict[str, Any]]
    errors: list[str]
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.told[0]["records"] if "loss" in line]


def run(folder: Path, phases: dict[str, dict[str, Any]]) -> dict[str, Phase]:
    """Have the script work through ``phases``; each trains in ``folder / where``, its name unless it says so."""
    plan = [
        {"ranks": 2, "steps": STEPS, **phase, "folder": str(folder / phase.get("where", name))}
        for name, phase in phases.items()
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, folder]
    subprocess.run(command, input=json.dumps(plan), text=True, check=True, env=environment, timeout=900)
    done = {}
    for number, (name, phase) in enumerate(zip(phases, plan, strict=True)):
        ended = json.loads((folder / f"{number}.json").read_text())
        files = [folder / f"{number}-{rank}.json" for rank in range(phase["ranks"])]
        kinds = [folder / f"{number}.{kind}.pt" for kind in ("weights", "average")]
        done[name] = Phase(
            Path(phase["folder"]),
            **ended,
            told=[json.loads(file.read_text()) if file.exists() else {} for file in files],
            errors=[file.with_suffix(".err").read_text() for file in files],
            **{file.suffixes[0][1:]: torch.load(file) if file.exists() else {} for file in kinds},
        )
    return done


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Phase]:
    """Runs that nothing ends, or SIGTERM to one of their ranks does."""
    folder = tmp_path_factory.mktemp("sound")
    first, second = ({"where": name, "model": "experts"} for name in ("experts 1", "copies 1"))
    third = {"where": "context 1", "model": "mixed", "rate": 1e-3}
    chain, aside = {"where": "chain"}, {"where": "aside", "dtype": "bfloat16", "aside": True, "save_seconds": 0.0}
    return run(
        folder,
        {
            "one": {"ranks": 1},
            "two": {},
            "four": {"ranks": 4},
            "copies": {"ranks": 4, "shard": 2, "recompute": True},
            "recomputed": {"ranks": 1, "recompute": True},
            "chain 1": {"ranks": 4, "fault": ["term", 2, 1], **chain},
            "chain 2": {"ranks": 2, "fault": ["term", 0, 3], **chain},
            "chain 3": {"ranks": 1, "fault": ["term", 0, 4], **chain},
            "chain 4": {"ranks": 4, **chain},
            "straight": {"dtype": "bfloat16"},
            "slow": {"fault": ["slow", 1, 0], "save_seconds": 0.0},
            "stopped": {"fault": ["term", 1, 2], **aside},
            "resumed": aside,
            "spikes alone": {"ranks": 1, "fault": ["spikes", 0, 5], "check_every": 4, "steps": 10},
            "spikes": {"fault": ["spikes", 0, 5], "check_every": 4, "steps": 10},
            "experts alone": {"ranks": 1, "model": "experts"},
            "experts 1": {"ranks": 4, "expert": 2, "fault": ["term", 2, 2], **first},
            "experts 2": {"expert": 2, "recompute": True, "export": True, **first},
            "copies 1": {"fault": ["term", 0, 1], **second},
            "copies 2": {"ranks": 4, "expert": 2, "shard": 2, **second},
            "whole rows": {"ranks": 1, "kind": "gradients", "model": "mixed"},
            "two parts": {"kind": "gradients", "model": "mixed", "context": 2},
            "four parts": {"ranks": 4, "kind": "gradients", "model": "mixed", "context": 4},
            "mixed": {"ranks": 1, **third, "where": "mixed"},
            "context 1": {"context": 2, "fault": ["term", 1, 2], **third},
            "context 2": {"ranks": 4, "context": 2, "expert": 2, "recompute": True, **third},
            "update alone": {"ranks": 1, "kind": "update"},
            "update": {"ranks": 3, "kind": "update"},
            "update in copies": {"ranks": 4, "shard": 2, "kind": "update"},
        },
    )


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys() and one
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=tolerance, rtol=0)


@pytest.mark.parametrize("other", ["two", "four", "copies"])
def test_several_ranks_train_as_one(sound: dict[str, Phase], other: str) -> None:
    one, many = sound["one"], sound[other]
    assert many.codes == [0] * len(many.codes)
    assert many.losses == pytest.approx(one.losses, abs=1e-5) and len(one.losses) == STEPS
    close(many.weights, one.weights, 1e-4)
    close(many.average, one.average, 1e-4)
    kept = ("step", "tokens", "learning_rate")
    assert [[line[key] for key in kept] for line in many.told[0]["records"]] == [
        [line[key] for key in kept] for line in one.told[0]["records"]
    ]


@pytest.mark.parametrize("other", ["two", "four"])
def test_the_order_of_tokens_is_that_of_one_rank(sound: dict[str, Phase], other: str) -> None:
    """Each micro-batch's rows, put together again rank by rank."""
    reads = zip(*(told["read"] for told in sound[other].told), strict=True)
    assert [[token for part in parts for token in part] for parts in reads] == sound["one"].told[0]["read"]


@pytest.mark.parametrize("name, begun", [("experts", [0, 3]), ("copies", [0, 2])])
def test_experts_over_several_ranks_train_as_on_one(sound: dict[str, Phase], name: str, begun: list[int]) -> None:
    """Four ranks of which two share the experts, then two; and two that hold them whole, then four in two copies.

    Rows do not divide by four ranks. Losses, weights, selection biases and loads are those of one rank.
    """
    one, many = sound["experts alone"], [sound[f"{name} {part}"] for part in (1, 2)]
    assert [set(run.codes) for run in many] == [{130}, {0}], many[1].errors
    assert [run.told[0]["from"] for run in many] == begun
    assert many[0].losses + many[1].losses == pytest.approx(one.losses, abs=1e-5) and len(one.losses) == STEPS
    close(many[1].weights, one.weights, 1e-4)
    assert one.weights["layers.1.feed_forward"].abs().sum() > 0
    loads = [line["expert_load_max"] for run in many for line in run.told[0]["records"]]
    assert loads == [line["expert_load_max"] for line in one.told[0]["records"]]


def test_shared_out_experts_are_written_as_one_checkpoint(sound: dict[str, Phase]) -> None:
    phase = sound["experts 2"]
    read = load_model(phase.folder / "checkpoint").state_dict()
    ours = {f"{name}.selection_bias" if name.endswith("feed_forward") else name: x for name, x in phase.weights.items()}
    close(read, ours, 0.0)


@pytest.mark.parametrize("name", ["two parts", "four parts"])
def test_gradients_of_parts_are_those_of_whole_rows(sound: dict[str, Phase], name: str) -> None:
    """In float64, through every mixer and packed documents."""
    one, parts = sound["whole rows"], sound[name]
    assert parts.codes == [0] * len(parts.codes), parts.errors
    assert parts.told[0]["loss"] == pytest.approx(one.told[0]["loss"], rel=1e-12)
    close(parts.weights, one.weights, 1e-10)


def test_parts_of_rows_train_as_whole_rows(sound: dict[str, Phase]) -> None:
    """In two parts, then in two beside two of other rows, computed again going back, with experts shared out; measured on
    whole rows in the end."""
    one, parts = sound["mixed"], [sound[f"context {part}"] for part in (1, 2)]
    assert [set(run.codes) for run in parts] == [{130}, {0}], parts[-1].errors
    assert [run.told[0]["from"] for run in parts] == [0, 3]
    losses = [loss for run in parts for loss in run.losses]
    assert losses == pytest.approx(one.losses, abs=1e-5) and len(one.losses) == STEPS
    close(parts[-1].weights, one.weights, 1e-4)
    for told in parts[-1].told:
        assert told["measured"] == pytest.approx(one.told[0]["measured"], rel=1e-5)


@pytest.mark.parametrize(
    ("config", "ranks", "sentence"),
    [
        (toy.CONFIG, 2, "parallel.expert is 2, and the model has no experts; leave it out"),
        (toy.MODELS["experts"], 3, "parallel.expert is 3, which does not go into 4 experts; use a divisor of 4"),
    ],
)
def test_experts_that_cannot_be_shared_out(config: ModelConfig, ranks: int, sentence: str) -> None:
    mesh: Any = SimpleNamespace(size=lambda: ranks)
    with pytest.raises(UserError, match=sentence):
        share_experts(Backbone(config), mesh)


def test_recomputed_activations_change_no_bit(sound: dict[str, Phase]) -> None:
    assert sound["recomputed"].losses == sound["one"].losses
    close(sound["recomputed"].weights, sound["one"].weights, 0.0)


def test_a_run_goes_on_with_another_number_of_ranks(sound: dict[str, Phase]) -> None:
    """Four, two, one, four; SIGTERM to one rank stops all of them after the same step."""
    names = ["chain 1", "chain 2", "chain 3", "chain 4"]
    assert [sound[name].codes for name in names] == [[130] * 4, [130] * 2, [130], [0] * 4]
    begun = [{told["from"] for told in sound[name].told} for name in names]
    # SIGTERM waits for the end of the step where it has to reach others; one rank alone saves at once.
    assert begun == [{0}, {2}, {4}, {4}]
    losses = [loss for name in names for loss in sound[name].losses]
    assert losses == pytest.approx(sound["one"].losses, abs=1e-5)
    close(sound["chain 4"].weights, sound["one"].weights, 1e-4)
    close(sound["chain 4"].average, sound["one"].average, 1e-4)


def test_as_many_ranks_resume_to_the_bit(sound: dict[str, Phase]) -> None:
    """In bfloat16, from a state that was written beside training."""
    stopped, resumed, straight = sound["stopped"], sound["resumed"], sound["straight"]
    assert stopped.codes == [130, 130] and resumed.told[0]["from"] == 3
    assert stopped.losses + resumed.losses == straight.losses
    close(resumed.weights, straight.weights, 0.0)


def test_the_rank_that_the_others_wait_for_is_named(sound: dict[str, Phase]) -> None:
    assert sound["slow"].codes == [0, 0] and sound["slow"].losses == pytest.approx(sound["one"].losses, abs=1e-5)
    assert "rank 1 on " in sound["slow"].errors[0] and sound["slow"].errors[1] == ""


def test_all_ranks_leave_out_spikes_and_go_back_together(sound: dict[str, Phase]) -> None:
    one, many = sound["spikes alone"], sound["spikes"]
    assert many.codes == [0, 0] and many.losses == pytest.approx(one.losses, abs=1e-5)
    kinds = [[sorted(line) for line in run.told[0]["records"]] for run in (one, many)]
    assert kinds[0] == kinds[1] and sum("skipped_loss" in line for line in kinds[0]) == 5
    back = [[line for line in run.told[0]["records"] if "skipped_batches" in line] for run in (one, many)]
    assert back[0] == back[1] and len(back[0]) == 1


@pytest.mark.parametrize("other", ["update", "update in copies"])
def test_muon_and_adamw_update_odd_shapes_as_on_one_rank(sound: dict[str, Phase], other: str) -> None:
    """Rows that do not divide by the ranks, fewer rows than ranks, fused matrices cut across ranks."""
    assert sound[other].codes == [0] * len(sound[other].codes), sound[other].errors
    close(sound[other].weights, sound["update alone"].weights, 1e-6)
    norms = [told["norms"] for told in sound[other].told]
    assert all(one == norms[0] for one in norms)
    assert norms[0] == pytest.approx(sound["update alone"].told[0]["norms"], rel=1e-6)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Phase]]:
    """Runs that something ends, each followed by one that goes on."""
    folder, saving = tmp_path_factory.mktemp("ended"), {"save_seconds": 0.0}
    return folder, run(
        folder,
        {
            "one": {"ranks": 1},
            "killed": {"ranks": 3, "fault": ["kill", 1, 2], "life": 0, **saving},
            "first killed": {"fault": ["kill", 0, 2], **saving},
            "failed": {"fault": ["error", 1, 1], **saving},
            "full": {"fault": ["full disk", 1, 2], **saving},
            "crowded": {"fault": ["memory", 1, 2], **saving},
            "flipped": {"ranks": 4, "shard": 2, "fault": ["flip", 3, 2], **saving},
            "after killed": {"ranks": 3, "where": "killed", "life": 1},
            "after full": {"where": "full"},
            "after crowded": {"where": "crowded", "fault": ["memory", 1, 2]},
            "after flipped": {"where": "flipped"},
        },
    )


@pytest.mark.parametrize("name, gone", [("killed", 1), ("first killed", 0)])
def test_a_killed_rank_is_named_by_the_others(ended: tuple[Path, dict[str, Phase]], name: str, gone: int) -> None:
    phase = ended[1][name]
    assert phase.codes[gone] == -9 and phase.seconds < 60
    for rank, (code, error) in enumerate(zip(phase.codes, phase.errors, strict=True)):
        if rank != gone:
            last = error.splitlines()[-1]
            # The first rank keeps the store in which the others are looked up, where there is no torchrun to do so.
            named = f"minnow: rank {gone} " + ("on 127.0.0.1 died; " if gone == 0 else "(process ")
            assert code == 2 and last.startswith(named) and "run the same command again" in last, error


def test_after_a_kill_the_run_goes_on(ended: tuple[Path, dict[str, Phase]]) -> None:
    after = ended[1]["after killed"]
    begun = after.told[0]["from"]  # the save of the step before may not have been whole yet
    assert after.codes == [0, 0, 0] and begun in (1, 2)
    assert after.losses == pytest.approx(ended[1]["one"].losses[begun:], abs=1e-5)


def test_a_rank_that_fails_says_why_and_the_others_say_which(ended: tuple[Path, dict[str, Phase]]) -> None:
    phase = ended[1]["failed"]
    assert phase.codes == [2, 2] and phase.seconds < 60
    assert phase.errors[1] == "minnow: shard 7 is damaged\n"
    assert phase.errors[0] == "minnow: rank 1 stopped: shard 7 is damaged\n"


def test_a_full_disk_on_one_rank_keeps_the_earlier_state(ended: tuple[Path, dict[str, Phase]]) -> None:
    phase, after = ended[1]["full"], ended[1]["after full"]
    assert phase.codes == [2, 2]
    assert all("could not write" in error and "on rank 1 (" in error for error in phase.errors), phase.errors
    begun = after.told[0]["from"]
    assert after.codes == [0, 0] and begun in (1, 2)
    assert after.losses == pytest.approx(ended[1]["one"].losses[begun:], abs=1e-5)


def test_out_of_memory_on_one_rank_makes_all_take_smaller_batches(ended: tuple[Path, dict[str, Phase]]) -> None:
    phase, after = ended[1]["crowded"], ended[1]["after crowded"]
    assert phase.codes == [2, 2]
    assert "out of memory: micro-batches of at most 1 rows" in phase.errors[0] and "rank 1 stopped" in phase.errors[0]
    assert after.codes == [0, 0] and after.losses == pytest.approx(ended[1]["one"].losses, abs=1e-5)


def test_a_bit_that_flips_in_one_copy_of_the_weights_is_not_saved(ended: tuple[Path, dict[str, Phase]]) -> None:
    phase, after = ended[1]["flipped"], ended[1]["after flipped"]
    assert phase.codes == [2] * 4
    assert all("ranks 1 and 3 hold copies of optimizer/" in error for error in phase.errors), phase.errors
    begun = after.told[0]["from"]
    assert after.codes == [0, 0] and begun in (1, 2)
    assert after.losses == pytest.approx(ended[1]["one"].losses[begun:], abs=1e-5)


def one_bit(save: Path) -> None:
    file = save / "__1_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


DAMAGE = {
    "one bit": (one_bit, "the checksum of __1_0.distcp is wrong"),
    "a part is gone": (lambda save: (save / "__1_0.distcp").unlink(), "the checksum of __1_0.distcp is wrong"),
    "cut short": (lambda save: (save / "state.pt").write_bytes(b"PK"), "its checksum is wrong"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_save_of_several_ranks_is_one_clear_sentence(
    ended: tuple[Path, dict[str, Phase]], tmp_path: Path, damage: str
) -> None:
    shutil.copytree(ended[0] / "full/train", tmp_path / "train")
    save = next((tmp_path / "train").glob("[0-9]*"))
    harm, reason = DAMAGE[damage]
    harm(save)
    with pytest.raises(UserError, match=f"{save} is damaged or of another model .{reason}.*delete it") as caught:
        toy.make_trainer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_save_of_another_layout_is_named(
    ended: tuple[Path, dict[str, Phase]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ended[0] / "full/train", tmp_path / "train")
    monkeypatch.setattr(toy, "CONFIG", lfm2_config(**{**toy.SHAPE, "intermediate_size": 48}))
    with pytest.raises(
        UserError, match=r"optimizer/masters/layers.0.*gate_up.* is \[64, 32\] there and \[96, 32\] here"
    ):
        toy.make_trainer(tmp_path, optimizer=OptimizerSettings(ema=0.9, muon=True))
    monkeypatch.setattr(toy, "CONFIG", lfm2_config(**{**toy.SHAPE, "layer_types": ("conv",)}))
    with pytest.raises(UserError, match="layers.1.* is not in both"):
        toy.make_trainer(tmp_path, optimizer=OptimizerSettings(ema=0.9, muon=True))


def test_copies_of_the_weights_follow_the_nodes() -> None:
    assert Parallel().copies(8, 8) == (1, 8)
    assert Parallel().copies(16, 8) == (2, 8)
    assert Parallel().copies(4, 1) == (1, 4)
    assert Parallel(shard=2).copies(8, 8) == (4, 2)
    with pytest.raises(UserError, match="parallel.shard is 3, which does not go into 8 ranks"):
        Parallel(shard=3).copies(8, 8)
    with pytest.raises(UserError, match="parallel.context is 3, which does not go into 8 ranks"):
        Parallel(context=3).copies(8, 8)
    for name in ("shard", "expert", "context"):
        with pytest.raises(UserError, match=f"parallel.{name} is 0"):
            Parallel(**{name: 0})
    with pytest.raises(UserError, match="parallel.expert is 3, which does not go into the 4 ranks that share a copy"):
        Parallel(shard=4, expert=3).copies(8, 8)


@pytest.mark.parametrize("name", ["expert", "context"])
def test_one_process_shares_nothing_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    shape = Parallel(**{name: 2})
    with pytest.raises(UserError, match=f"parallel.{name} is 2, and this is one process"), joined(shape):
        pass
    assert Ranks(shape).alone().parallel == Parallel()


def test_a_launcher_that_says_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE is 2, and RANK is not set"), joined(Parallel()):
        pass


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UserError, match=f"could not keep the ranks' store at 127.0.0.1:{port} ") as caught:
            _connect(keep=True)
    assert "\n" not in str(caught.value)


def test_positions_of_a_rank() -> None:
    parallel = Parallel(context=2)
    assert [parallel.positions(6, rank) for rank in range(3)] == [slice(0, 3), slice(3, 6), slice(0, 3)]
    with pytest.raises(UserError, match="parallel.context is 2, which does not go into rows of 7 tokens"):
        parallel.positions(7, 0)
