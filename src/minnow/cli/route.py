"""``minnow route explain``: which way a request would take, and why."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from minnow.cli.output import AsJson, columns, emit
from minnow.serve.personal import personal_data
from minnow.serve.policy import Facts, choose, load_policy, reconsider, threshold_of


def explain(
    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")],
    /,
    policy: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    route: Annotated[
        Literal["auto", "local", "search", "cloud"], tyro.conf.arg(metavar="auto|local|search|cloud")
    ] = "auto",
    private: bool = False,
    search: bool = False,
    signal: float | None = None,
    local: float = 1.0,
    cloud: float = 1.0,
    deadline: float = 120.0,
    battery: int | None = None,
    down: bool = False,
    as_json: AsJson = False,
) -> None:
    """Say which way a text would take under a policy. Nothing is asked and nothing is sent.

    Args:
        text: what a user would ask.
        policy: the YAML file.
        route: the way the client asks for.
        private: the request is tagged private.
        search: there is something to search.
        signal: mean log-probability of the beginning of the local answer.
        local: predicted seconds of the local answer.
        cloud: predicted seconds of the cloud's.
        deadline: seconds until it is wanted.
        battery: charge in per cent, of a machine that runs on it.
        down: the cloud has failed lately.
        as_json: print one JSON document.
    """
    rules = load_policy(policy)
    facts = Facts(route, private, personal_data(text), down, False, battery, local, cloud, deadline, search)
    first = choose(rules, facts)
    threshold = threshold_of(rules.signal)
    last = reconsider(rules, facts, first, signal, threshold) if first.action == "local" and route == "auto" else first
    document = {"facts": dataclasses.asdict(facts), "threshold": threshold, "signal": signal}
    document |= {"first": dataclasses.asdict(first), "then": dataclasses.asdict(last)}
    rows = [["first", f"{first.action}: {first.reason}"], ["then", f"{last.action}: {last.reason}"]]
    rows.append(["cloud", f"closed: {first.closed}" if first.closed else "open"])
    emit(document, columns([[name, said.ljust(max(len(row[1]) for row in rows))] for name, said in rows]), as_json)
