"""Walks on star graphs: the step that makes progress is hard to see, an easy cycle is at hand.

The graph is a centre with arms; the tip of one arm that does not lead to the goal is joined back
to the centre. From the centre only looking all the way down the arms tells which first step is
right; after it every step copies an edge. Whoever errs can walk round the cycle for ever. The
setting follows the synthetic task of "Why do reasoning models loop?" (arXiv 2512.12895).
"""

from __future__ import annotations

import itertools
import re
import string
from random import Random

from minnow.tasks.names import split_of
from minnow.tasks.types import Draft, Score, Split

TRAINED_ARMS = (2, 4)
TRAINED_LENGTHS = (2, 3)
LONG_SHAPES = ((5, 5), (4, 6), (3, 8), (2, 12))  # arms, nodes in each: up to 26 nodes


def draw(rng: Random, split: Split, long: bool = False) -> Draft:
    """One walk of ``split``; ``long`` asks for longer arms than are ever trained on."""
    while True:
        arms, length = rng.choice(LONG_SHAPES) if long else (rng.randint(*TRAINED_ARMS), rng.randint(*TRAINED_LENGTHS))
        centre, *labels = rng.sample(string.ascii_lowercase, 1 + arms * length)
        paths = [[centre, *labels[arm * length : (arm + 1) * length]] for arm in range(arms)]
        edges = [edge for path in paths for edge in itertools.pairwise(path)]
        edges.append((paths[1][-1], centre))
        rng.shuffle(edges)
        goal = paths[0][-1]
        prompt = f"Edges: {', '.join(f'{a} {b}' for a, b in edges)}. Walk from {centre} to {goal}."
        if split_of(prompt) == split:
            answer = {"edges": [list(edge) for edge in edges], "start": centre, "goal": goal}
            return Draft.plain(prompt, f"Walk: {' '.join(paths[0])}.", answer)


def score(answer: dict, text: str) -> Score:
    """Right when ``text`` is a walk from start to goal along edges (either way) that visits no node twice."""
    found = re.fullmatch(r"Walk:((?: [a-z])+)\.", text.strip())
    if not found:
        return Score.wrong("not of the form 'Walk: a b c.'")
    nodes = found[1].split()
    if nodes[0] != answer["start"]:
        return Score.wrong(f"starts at {nodes[0]}, not {answer['start']}")
    if len(set(nodes)) < len(nodes):
        return Score.wrong("visits a node twice")
    edges = {frozenset(edge) for edge in answer["edges"]}
    for edge in itertools.pairwise(nodes):
        if frozenset(edge) not in edges:
            return Score.wrong(f"no edge {edge[0]} {edge[1]}")
    return Score.right() if nodes[-1] == answer["goal"] else Score.wrong(f"ends at {nodes[-1]}, not {answer['goal']}")
