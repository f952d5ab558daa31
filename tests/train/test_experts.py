"""How a mixture's experts are counted, evened out and limited, on one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minnow.data.rows import Batch
from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.config import Experts, ModelConfig
from minnow.model.families.lfm2 import lfm2_config
from minnow.train.experts import ExpertLoads, ExpertSettings
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.lora import LoraSettings
from minnow.train.objectives import next_token
from minnow.train.optimizer import OptimizerSettings
from minnow.train.parallel import Parallel
from minnow.train.ranks import Ranks

PLAIN = lfm2_config(64, 32, 32, ("conv", "full_attention"), num_heads=2, num_kv_heads=1, head_dim=16, max_positions=64)


def shape(experts: int = 4, active: int = 1) -> ModelConfig:
    routed = replace(PLAIN.layers[1], feed_forward=Experts(experts, active, 16))
    return replace(PLAIN, family="lfm2_moe", layers=(PLAIN.layers[0], routed))


def model(experts: int = 4, active: int = 1) -> Backbone:
    made = Backbone(shape(experts, active))
    made.initialise(0)
    return made


def batch(rows: int = 4, length: int = 32, padding: int = 0) -> Batch:
    tokens = torch.randint(14, 64, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    documents = torch.ones(rows, length, dtype=torch.long)
    documents[:, length - padding :] = 0
    targets = tokens[:, 1:].masked_fill(documents == 0, -100)
    return Batch(tokens[:, :-1].masked_fill(documents == 0, 0), targets, documents)


def chosen(made: Backbone, given: Batch) -> torch.Tensor:
    """Experts of the real tokens, in order, as the router alone has them."""
    seen: list[torch.Tensor] = []
    handle = made.layers[1].feed_forward.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        made(given.tokens, given.documents)
    handle.remove()
    with torch.no_grad():
        return made.layers[1].feed_forward.route(seen[0].flatten(0, 1))[1][given.documents.flatten() > 0]


@pytest.mark.parametrize("recompute", [False, True])
def test_loads_are_counted_once_and_without_padding(recompute: bool) -> None:
    made, given = model(active=2), batch(padding=5)
    wanted = torch.bincount(chosen(made, given).flatten(), minlength=4).double()
    loads = ExpertLoads(made, ExpertSettings(balance=0.25))
    Ranks(Parallel(activation_checkpointing=recompute)).spread(made, torch.float32)
    with torch.no_grad():
        made(given.tokens, given.documents)  # measuring does not count
    next_token(made, given).total.backward()
    loads.gather(Ranks())
    share = wanted / wanted.mean()
    assert loads.shares() == {"expert_load_max": share.max(), "expert_load_min": share.min()}
    loads.balance()
    assert loads.state()["layers.1.feed_forward"].tolist() == (0.25 * (wanted.mean() - wanted).sign()).tolist()
    loads.reset()
    assert loads.shares() == {}


def test_a_full_expert_lets_later_tokens_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 x 27 tokens an expert takes the first ceil(1.0 * 108 / 4) of its own; padding takes nobody's room."""
    made, given = model(), batch(padding=5)
    numbers = chosen(made, given)[:, 0]
    place = torch.stack([(numbers[:i] == number).sum() for i, number in enumerate(numbers)])
    dropped = place >= 27
    assert 0 < dropped.sum() < len(numbers)
    loads = ExpertLoads(made, ExpertSettings(capacity=1.0))
    outputs: list[torch.Tensor] = []
    made.layers[1].feed_forward.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    next_token(made, given).total.backward()
    given_nothing = outputs[0].flatten(0, 1).abs().sum(1)[given.documents.flatten() > 0] == 0
    assert given_nothing.tolist() == dropped.tolist()
    loads.gather(Ranks())
    assert loads.shares()["expert_drops"] == pytest.approx(float(dropped.double().mean()))


def trainer(folder: Path, steps: int, made: Backbone, records: list[dict[str, Any]], **settings: Any) -> Trainer:
    def record(**line: Any) -> None:
        records.append(line)

    chosen = TrainSettings(steps, OptimizerSettings(1e-3), log_every=1, save_seconds=0.0, **settings)
    return Trainer(made, next_token, lambda step: [batch()], chosen, record, folder / "train.pt")


def test_training_evens_out_the_loads(tmp_path: Path) -> None:
    """A bias that sends everything to one expert is worn away, and nothing but it is moved for that."""
    records: list[dict[str, Any]] = []
    made = model()
    made.layers[1].feed_forward.selection_bias[2] = 1.0
    trainer(tmp_path, 30, made, records, experts=ExpertSettings(balance=0.05)).run()
    loads = [line["expert_load_max"] for line in records]
    assert loads[0] == 4.0 and loads[-1] < 2.0
    assert [line["expert_load_min"] for line in records][-1] > 0.25


def test_the_selection_bias_is_resumed(tmp_path: Path) -> None:
    straight: list[dict[str, Any]] = []
    trainer(tmp_path / "straight", 6, model(), straight).run()
    parts: list[dict[str, Any]] = []
    first = trainer(tmp_path / "parts", 6, model(), parts)

    def stop(trainer: Trainer) -> bool:
        if trainer.done_steps == 3:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        first.run(stop, 3)
    trainer(tmp_path / "parts", 6, model(), parts).run()
    keys = ("loss", "expert_load_max", "expert_load_min")
    assert [[line[key] for key in keys] for line in parts] == [[line[key] for key in keys] for line in straight]


def test_an_adapter_leaves_the_selection_bias(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    made = trainer(tmp_path, 2, model(), records, lora=LoraSettings(rank=2))
    made.run()
    assert not made.loads.state()["layers.1.feed_forward"].any()


@pytest.mark.parametrize("settings", [{"balance": -1.0}, {"capacity": 0.0}])
def test_settings_that_make_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="balance is 0 or more, and capacity above 0"):
        ExpertSettings(**settings)
