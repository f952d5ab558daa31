"""What becomes of a training when a host dies, loses its network or has a slow disk? Hosts are namespaces of this machine.

Two hosts with a network, process and host-name namespace of their own train one small model under torchrun (one rank
each, gloo over a virtual link); a third keeps torchrun's store. In the middle of a step one of them is killed whole, or
its link is taken down, or its writes to the disk are throttled; later it may come back. Every step that any life of the
training makes is compared with a run that nothing disturbed: which tokens it read, by digest, and its loss (float32).

Needs root, ``ip``, ``unshare`` and, for the disk, a cgroup v1 with blkio:

    python benchmarks/hosts.py [--steps 400] [--json FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch

from minnow.data.loader import Loader
from minnow.data.rows import Batch
from minnow.model.backbone import Backbone
from minnow.model.families.lfm2 import lfm2_config
from minnow.train import loop
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import next_token
from minnow.train.optimizer import OptimizerSettings
from minnow.train.parallel import Parallel
from minnow.train.ranks import joined
from ranks import LENGTH, ROWS, VOCABULARY, corpus

NETWORK = "10.77.0"
HOSTS = {"head": 1, "one": 2, "two": 3}
"""The last part of each host's address."""

RENDEZVOUS = "is_host=false,last_call_timeout=15,read_timeout=1200"
"""As in docs/scale.md."""

SAVE_SECONDS = 5.0
STEP_SECONDS = 0.5
"""That a step takes at least: training is to go on still when a host comes back."""

BLKIO = Path("/sys/fs/cgroup/blkio/minnow-slow")
SLOW_BYTES = 200_000
"""A second that a slow disk takes."""


def train(folder: Path, steps: int) -> None:
    """What a rank does; each life of each rank leaves a line per step."""
    torch.set_num_threads(1)
    loop.compute_dtype = lambda: torch.float32
    model = Backbone(
        lfm2_config(
            VOCABULARY, 192, 384, ("conv", "full_attention") * 2, num_heads=6, num_kv_heads=2, head_dim=32,
            max_positions=LENGTH,
        )
    )  # fmt: skip
    model.initialise(0)
    loader = Loader(corpus(), ROWS, seed=0)
    digests: dict[int, str] = {}
    with joined(Parallel()) as ranks:
        life = f"{time.time():.2f}"
        file = (folder / f"{ranks.from_first(life)}-{ranks.count}-{ranks.rank}.jsonl").open("a", buffering=1)

        def batches(step: int) -> list[Batch]:
            time.sleep(STEP_SECONDS)
            batch = loader.batch(step, ranks.rank, ranks.count)
            digests[step + 1] = hashlib.sha256(batch.tokens.numpy().tobytes()).hexdigest()
            return [batch]

        def record(**values: Any) -> None:
            line = {"step": values["step"], "loss": values["loss"], "tokens": digests[values["step"]]}
            file.write(json.dumps(line | {"time": time.time()}) + "\n")

        settings = TrainSettings(
            steps, OptimizerSettings(3e-3, muon=True), spike=0.0, save_seconds=SAVE_SECONDS, log_every=1
        )
        Trainer(model, next_token, batches, settings, record, folder / "train.pt", ranks).run()


def run(*command: str) -> None:
    subprocess.run(command, check=True)


class Cluster:
    """The namespaces, a bridge between them, and what runs there."""

    def __enter__(self) -> Self:
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.clear()
        run("ip", "link", "add", "mnbridge", "type", "bridge")
        run("ip", "link", "set", "mnbridge", "up")
        for name, number in HOSTS.items():
            run("ip", "netns", "add", f"mn{name}")
            run("ip", "link", "add", f"mn{name}", "type", "veth", "peer", "name", "eth0", "netns", f"mn{name}")
            run("ip", "link", "set", f"mn{name}", "master", "mnbridge", "up")
            inside = ("ip", "-n", f"mn{name}")
            run(*inside, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                run(*inside, "link", "set", device, "up")
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self.running):
            self.kill(name)
        self.clear()

    def clear(self) -> None:
        """Take down what there is, left by an earlier run perhaps."""
        links = [["ip", "link", "del", name] for name in ("mnbridge", *(f"mn{host}" for host in HOSTS))]
        for command in [*links, *(["ip", "netns", "del", f"mn{host}"] for host in HOSTS)]:
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL)

    def start(self, name: str, command: list[str], log: Path) -> None:
        """Run ``command`` on a host: in its network, seeing its own processes only, under its own name."""
        wrapped = f'hostname {name}; exec "$@"'
        whole = [
            "ip",
            "netns",
            "exec",
            f"mn{name}",
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--uts",
        ]
        # torchrun remembers the first store that its ranks shared, also once another host has the first rank.
        shared = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"} | shared
        with log.open("ab") as out:
            self.running[name] = subprocess.Popen(
                [*whole, "sh", "-c", wrapped, "sh", *command], stdout=out, stderr=out, env=environment
            )

    def processes(self, name: str) -> list[int]:
        """Of a host, from the first, which takes all others with it."""
        found = [self.running[name].pid]
        for parent in found:
            for task in Path(f"/proc/{parent}/task").glob("*/children"):
                with suppress(OSError):
                    found += [int(child) for child in task.read_text().split()]
        return found

    def kill(self, name: str) -> None:
        """The host is gone: every process of it at once."""
        process = self.running.pop(name)
        process.kill()  # unshare kills the namespace's first process, and the kernel the rest
        process.wait()

    def link(self, name: str, state: str) -> None:
        """Take the host's cable out (``down``) or put it back (``up``)."""
        run("ip", "link", "set", f"mn{name}", state)

    def slow_disk(self, name: str, disk: str) -> None:
        """Throttle what the host's processes write, and those they start."""
        BLKIO.mkdir()
        (BLKIO / "blkio.throttle.write_bps_device").write_text(f"{disk} {SLOW_BYTES}")
        for process in self.processes(name):
            (BLKIO / "cgroup.procs").write_text(str(process))

    def train(self, folder: Path, steps: int) -> None:
        """The store on one host, torchrun on the two others."""
        store = f"import torch.distributed as d, time; s = d.TCPStore('{NETWORK}.1', 29500, is_master=True); time.sleep(1e6)"
        self.start("head", [sys.executable, "-c", store], folder / "head.log")
        for name in ("one", "two"):
            self.join(name, folder, steps)

    def join(self, name: str, folder: Path, steps: int) -> None:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1",
            "--max-restarts", "9", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{NETWORK}.1:29500", "--rdzv-id", "here",
            "--rdzv-conf", RENDEZVOUS, "--local-addr", f"{NETWORK}.{HOSTS[name]}",
            __file__, "--worker", str(folder), "--steps", str(steps),
        ]  # fmt: skip
        again = 'until "$@"; do sleep 5; done'
        self.start(name, ["sh", "-c", again, "sh", *command], folder / f"{name}.log")


def lives(folder: Path) -> dict[tuple[str, int], dict[int, dict[int, Any]]]:
    """Of every life (its beginning, its ranks) the lines by step and rank."""
    found: dict[tuple[str, int], dict[int, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for file in folder.glob("*.jsonl"):
        began, ranks, rank = file.stem.split("-")
        for text in file.read_text().splitlines():
            with suppress(json.JSONDecodeError):  # cut short by a kill
                line = json.loads(text)
                found[began, int(ranks)][line["step"]][int(rank)] = line
    return found


def newest_step(folder: Path) -> int:
    return max((step for steps in lives(folder).values() for step in steps), default=0)


def wait_for(folder: Path, step: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while newest_step(folder) < step:
        if time.monotonic() > deadline:
            logs = "\n".join(file.read_text()[-3000:] for file in folder.glob("*.log"))
            raise SystemExit(f"no step {step} after {seconds:.0f} s:\n{logs}")
        time.sleep(0.1)


def wrong_tokens(folder: Path, steps: int) -> int:
    """Lines whose rank did not read its part of the step's rows."""
    loader, wrong = Loader(corpus(), ROWS, seed=0), 0
    for (_, count), made in lives(folder).items():
        for step, ranks in made.items():
            for rank, line in ranks.items():
                tokens = loader.batch(step - 1, rank, count).tokens
                wrong += hashlib.sha256(tokens.numpy().tobytes()).hexdigest() != line["tokens"]
    return wrong


def scenario(
    name: str,
    fault: Callable[[Cluster], None] | None,
    later: Callable[[Cluster, Path], None] | None,
    steps: int,
    losses: dict[int, float],
) -> dict[str, Any]:
    """Train with a fault after a third of the steps; ``later`` brings the host back once training has gone on for a while."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as place, Cluster() as cluster:
        folder = Path(place)
        began = time.time()
        cluster.train(folder, steps)
        hurt = went_on = back = joined_again = None
        if fault is not None:
            wait_for(folder, steps // 3, 300)
            before = newest_step(folder)
            hurt = time.time()
            fault(cluster)
            wait_for(folder, before + 5, 300)
            went_on = min(
                line["time"] for made in lives(folder).values() for step, ranks in made.items() if step > before + 1
                for line in ranks.values()
            )  # fmt: skip
            if later is not None:
                wait_for(folder, steps // 2, 300)
                back = time.time()
                later(cluster, folder)
        wait_for(folder, steps, 600)
        made = lives(folder)
        if back is not None:
            joined_again = min(
                (line["time"] - back for (began, count), found in made.items() if count == 2 and float(began) > back
                 for ranks in found.values() for line in ranks.values()),
                default=None,
            )  # fmt: skip
        times = sorted(
            (line["time"], step) for steps_made in made.values() for step, ranks in steps_made.items()
            for line in [ranks[min(ranks)]]
        )  # fmt: skip
        here = {step: ranks[min(ranks)]["loss"] for _, found in sorted(made.items()) for step, ranks in found.items()}
        result = {
            "scenario": name,
            "steps": steps,
            "lives": [f"{count} rank{'s' * (count > 1)}" for _, count in sorted(made)],
            "went_on_after": None if hurt is None or went_on is None else went_on - hurt,
            "joined_after": joined_again,
            "longest_pause": max(b[0] - a[0] for a, b in pairwise(times)),
            "made_again": len(times) - steps,
            "wrong_tokens": wrong_tokens(folder, steps),
            "missing_steps": len(set(range(1, steps + 1)) - here.keys()),
            "farthest_loss": max((abs(loss - losses[step]) for step, loss in here.items()), default=0.0)
            if losses
            else 0.0,
            "seconds": time.time() - began,
        }
        if not losses:
            losses.update(here)
        return result


def show(one: dict[str, Any]) -> None:
    after, joined = ("" if one[key] is None else f"{one[key]:.1f}" for key in ("went_on_after", "joined_after"))
    print(
        f"{one['scenario']:42}{' > '.join(one['lives']):34}{after:>11}{joined:>10}{one['longest_pause']:10.1f}"
        f"{one['made_again']:8}{one['wrong_tokens']:8}{one['farthest_loss']:11.1e}{one['seconds']:9.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="+", help="parts of scenarios' names; nothing's is always run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        train(options.worker, options.steps)
        return
    if os.geteuid():
        raise SystemExit("namespaces need root; run this as root")
    disk = os.stat(Path.cwd()).st_dev
    device = f"{os.major(disk)}:{os.minor(disk)}"

    scenarios: list[tuple[str, Any, Any]] = [
        ("nothing", None, None),
        ("host two is killed", lambda cluster: cluster.kill("two"), None),
        ("host one is killed, and comes back", lambda cluster: cluster.kill("one"),
         lambda cluster, folder: cluster.join("one", folder, options.steps)),
        ("host two's link goes down", lambda cluster: cluster.link("two", "down"), None),
        *((f"host {host}'s link goes down, and up again", partial(Cluster.link, name=host, state="down"),
           lambda cluster, folder, host=host: cluster.link(host, "up")) for host in ("two", "one")),
        ("host two's disk writes 200 kB/s", lambda cluster: cluster.slow_disk("two", device), None),
    ]  # fmt: skip
    heads = f"{'went on, s':>11}{'joined, s':>10}{'pause, s':>10}{'again':>8}{'wrong':>8}{'loss off':>11}{'all, s':>9}"
    print(f"{'':42}{'lives':34}{heads}")
    results: list[dict[str, Any]] = []
    losses: dict[int, float] = {}
    for name, fault, later in scenarios:
        if fault is None or not options.only or any(part in name for part in options.only):
            results.append(scenario(name, fault, later, options.steps, losses))
            show(results[-1])
        with suppress(OSError):
            BLKIO.rmdir()
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a rank saves; the script takes the namespaces down
    main()
