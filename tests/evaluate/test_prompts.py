"""The built-in prompt sets: different, repeatable, and puzzles that have one solution."""

from __future__ import annotations

import re
from itertools import permutations, product

import pytest

from minnow.errors import UserError
from minnow.evaluate.prompts import PROMPTS, SETS, prompt_set


def said(name: str, count: int = PROMPTS, seed: int = 0) -> list[str]:
    return [example.messages[0]["content"] for example in prompt_set(name, count, seed)]


@pytest.mark.parametrize("name", SETS)
def test_sets_are_different_prompts_of_one_seed(name: str) -> None:
    prompts, ids = said(name), [example.id for example in prompt_set(name)]
    assert len(set(prompts)) == len(set(ids)) == PROMPTS
    assert said(name, 30) == prompts[:30] and ids[0] == f"{name}-1"
    assert said(name, 30, seed=1) != prompts[:30]
    assert all(re.fullmatch(r"[A-Z0-9].*[.?]", prompt, re.DOTALL) and "{" not in prompt for prompt in prompts)
    assert len({example.task for example in prompt_set(name)}) > 1


def test_a_set_that_ends_says_so() -> None:
    with pytest.raises(UserError, match="'enumeration' hold .* different ones, not 9999; ask for fewer with --n"):
        prompt_set("enumeration", 9999)


def test_graphs_lead_to_their_goal_by_one_way_only() -> None:
    graphs = [e.messages[0]["content"] for e in prompt_set("reasoning") if e.task == "graph"]
    assert len(graphs) == 40
    for text in graphs:
        edges = [(int(a), int(b)) for a, b in re.findall(r"(\d+) to (\d+)[,.]", text)]
        found = re.search(r"from crossing (\d+) to crossing (\d+)", text)
        assert found is not None
        start, goal = map(int, found.groups())
        paths, ways = [[start]], []
        while paths:
            path = paths.pop()
            nexts = [b for a, b in edges if a == path[-1] and b not in path]
            ways += [path] if path[-1] == goal else []
            paths += [[*path, one] for one in nexts]
        assert len(ways) == 1 and len(ways[0]) >= 6


def test_logic_grids_have_one_solution() -> None:
    """Read back from the text alone."""
    grids = [e.messages[0]["content"] for e in prompt_set("reasoning", 60) if e.task == "logic grid"]
    assert len(grids) == 12
    for text in grids:
        things: dict[str, list[str]] = {}
        for verb in ("drinks", "keeps", "plays"):
            found = re.search(rf"one each {verb} ([^;.]+)", text)
            assert found is not None
            things[verb] = found[1].split(", ")
        worlds = [
            {
                f"{verb} {thing}": place
                for verb, order in zip(things, orders, strict=True)
                for place, thing in enumerate(order)
            }
            for orders in product(*(permutations(values) for values in things.values()))
        ]
        for clue in re.findall(r"The person who (.+?)\.(?= |$)", text):
            if match := re.fullmatch(r"(.+) lives in house (\d)", clue):
                worlds = [w for w in worlds if w[match[1]] == int(match[2]) - 1]
            elif match := re.fullmatch(r"(.+) also (.+)", clue):
                worlds = [w for w in worlds if w[match[1]] == w[match[2]]]
            elif match := re.fullmatch(r"(.+) lives next to the one who (.+)", clue):
                worlds = [w for w in worlds if abs(w[match[1]] - w[match[2]]) == 1]
            else:
                match = re.fullmatch(r"(.+) does not live next to the one who (.+), and is not the same person", clue)
                assert match is not None, clue
                worlds = [w for w in worlds if abs(w[match[1]] - w[match[2]]) > 1]
        assert len(worlds) == 1, text
