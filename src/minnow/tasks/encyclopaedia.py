"""The fictional entities and what is true of them: the knowledge behind pages, questions and lists.

Entities come in blocks of 25, one province each, and every fact stays inside its block; so a
province held out of training holds out all its towns, people, companies, rivers and plants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from minnow.errors import UserError
from minnow.tasks.extraction import ITEMS
from minnow.tasks.names import person_name, place_name
from minnow.tasks.types import Split

BLOCK = {"province": 1, "town": 9, "person": 8, "company": 3, "river": 2, "plant": 2}
BLOCK_SIZE = sum(BLOCK.values())
HELD_OUT_EVERY = 5  # provinces; one in five is held out
FEWEST_ENTITIES = HELD_OUT_EVERY * BLOCK_SIZE

PROFESSIONS = ("baker", "painter", "miller", "weaver", "doctor", "singer", "farmer", "carpenter", "teacher", "sailor")
COLOURS = (
    "red", "blue", "yellow", "white", "purple", "orange", "pink", "green", "grey", "black", "brown", "golden",
    "crimson", "violet", "scarlet", "cream",
)  # fmt: skip


@dataclass(frozen=True)
class Entity:
    """One entity: ``facts`` maps a relation to its value, ``links`` the relations whose value is an entity."""

    id: str
    kind: str
    name: str
    split: Split
    facts: dict[str, str] = field(default_factory=dict)
    links: dict[str, Entity] = field(default_factory=dict)

    def link(self, relation: str, other: Entity) -> None:
        self.links[relation] = other
        self.facts[relation] = other.name


def build(seed: int, entities: int) -> list[Entity]:
    """All entities of a world, province after province; a whole number of blocks, at most ``entities``.

    Raises:
        UserError: too few entities for both splits.
    """
    if entities < FEWEST_ENTITIES:
        raise UserError(
            f"a pocket world of {entities} entities has no held-out province; ask for at least {FEWEST_ENTITIES}"
        )
    rng = Random(f"{seed}/entities")
    taken: set[str] = set()
    return [entity for block in range(entities // BLOCK_SIZE) for entity in _block(rng, block, taken)]


def fresh(make: Callable[[Random, Split], str], rng: Random, split: Split, taken: set[str]) -> str:
    """A name that is not in ``taken``; it is put there."""
    while (name := make(rng, split)) in taken:
        pass
    taken.add(name)
    return name


def _block(rng: Random, block: int, taken: set[str]) -> list[Entity]:
    split: Split = "held_out" if block % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else "train"
    made = {
        kind: [
            Entity(
                id=f"{kind}-{block * count + place:05d}",
                kind=kind,
                name=fresh(person_name if kind == "person" else place_name, rng, split, taken),
                split=split,
            )
            for place in range(count)
        ]
        for kind, count in BLOCK.items()
    }
    province, towns, people = made["province"][0], made["town"], made["person"]
    province.link("capital", rng.choice(towns))
    province.link("ruler", rng.choice(people))
    for town in towns:
        town.link("province", province)
        town.link("river", rng.choice(made["river"]))
        town.link("founder", rng.choice(people))
        town.facts["year"] = str(rng.randint(1000, 1899))
        town.facts["export"] = rng.choice(ITEMS)
    for person in people:
        person.facts["profession"] = rng.choice(PROFESSIONS)
        person.link("birthplace", rng.choice(towns))
        person.link("employer", rng.choice(made["company"]))
    for company in made["company"]:
        company.link("seat", rng.choice(towns))
        company.facts["product"] = rng.choice(ITEMS)
        company.link("head", rng.choice(people))
    for river in made["river"]:
        river.link("province", province)
        river.facts["length"] = str(rng.randint(20, 900))
        river.facts["lake"] = fresh(place_name, rng, split, taken)
    for plant in made["plant"]:
        plant.link("province", province)
        plant.facts["colour"] = rng.choice(COLOURS)
        plant.facts["use"] = rng.choice(ITEMS)
    return [entity for group in made.values() for entity in group]
