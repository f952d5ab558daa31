"""Mock APIs that carry calls out: what BFCL's multi-turn categories work on, as its function documents describe them.

An API is a class: its public methods are the functions on offer, its public attributes the state that two of them are
compared by. Results are JSON; a call that cannot be done returns ``{"error": …}``. Written from the documents
(``func_doc_*``), not from the leaderboard's code; results may be worded otherwise, which matters to a model only, since the
expected calls run on the same class. BFCL's further three (travel, trading, vehicles) return numbers of their own that no
document says, and are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from minnow.data.calls import Call
from minnow.tasks.apis.api import ApiError
from minnow.tasks.apis.file_system import FileSystem
from minnow.tasks.apis.maths import Maths
from minnow.tasks.apis.office import Messages, Posts, Tickets

APIS: dict[str, type] = {
    "GorillaFileSystem": FileSystem,
    "MathAPI": Maths,
    "MessageAPI": Messages,
    "TicketAPI": Tickets,
    "TwitterAPI": Posts,
}
"""By BFCL's names for them."""

_MOST_CHARACTERS = 1_000_000  # of state: copies of copies end there


class Session:
    """APIs in use, each in the state that ``config`` describes (by name; an API's own start where it says nothing)."""

    def __init__(self, names: Iterable[str], config: Mapping[str, Any]) -> None:
        self._apis = {name: APIS[name](deepcopy(config.get(name, {}))) for name in names}

    @property
    def state(self) -> dict[str, dict[str, Any]]:
        """Everything that calls have changed, by API and attribute."""
        return {
            name: {key: value for key, value in vars(api).items() if not key.startswith("_")}
            for name, api in self._apis.items()
        }

    def call(self, call: Call) -> str:
        """Carry a call out; what comes back, errors too, as text."""
        owner = next((each for each in self._apis.values() if _offers(each, call.name)), None)
        try:
            if owner is None:
                raise ApiError(f"there is no function {call.name}")
            if len(repr(vars(owner))) > _MOST_CHARACTERS:
                raise ApiError("no space is left")
            result = getattr(owner, call.name)(**deepcopy(call.arguments))
            return json.dumps(result, ensure_ascii=False)
        except ApiError as error:
            return json.dumps({"error": str(error)}, ensure_ascii=False)
        except Exception as error:  # noqa: BLE001  arguments are a model's: of any type and size
            return json.dumps({"error": f"{call.name} failed: {error}"[:300]}, ensure_ascii=False)


def _offers(api: object, name: str) -> bool:
    return not name.startswith("_") and callable(getattr(type(api), name, None))
