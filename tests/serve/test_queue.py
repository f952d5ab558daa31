"""Fair turns, a bounded line, and nothing lost when clients go."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from minnow.serve.errors import ApiError
from minnow.serve.queue import FairQueue


def test_one_client_that_sends_many_waits_for_itself() -> None:
    async def play() -> list[str]:
        queue, order = FairQueue(1, 100), []

        async def ask(client: str) -> None:
            async with queue.slot(client):
                order.append(client)
                await asyncio.sleep(0)

        await asyncio.gather(*(ask("greedy") for _ in range(8)), ask("a"), ask("b"))
        return order

    order = asyncio.run(play())
    assert max(order.index("a"), order.index("b")) <= 3 and Counter(order)["greedy"] == 8


def test_past_its_end_the_line_refuses_and_says_when() -> None:
    async def play() -> None:
        queue = FairQueue(1, 1)
        async with queue.slot("a"):
            waiting = asyncio.create_task(queue.slot("b").__aenter__())
            await asyncio.sleep(0)
            with pytest.raises(ApiError) as error:
                async with queue.slot("c"):
                    pass
            assert error.value.status == 429 and error.value.retry_after and error.value.retry_after >= 1
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert queue.waiting == 0
        assert queue.running == 0

    asyncio.run(play())


@pytest.mark.parametrize("seed", range(20))
def test_slots_survive_clients_that_go_at_any_moment(seed: int) -> None:
    async def play() -> None:
        noise, queue = random.Random(seed), FairQueue(3, 1000)
        held = 0

        async def ask(client: str) -> None:
            nonlocal held
            async with queue.slot(client):
                held += 1
                assert held <= 3
                try:
                    await asyncio.sleep(noise.random() / 200)
                finally:
                    held -= 1

        tasks = [asyncio.create_task(ask(str(noise.randrange(20)))) for _ in range(60)]
        for task in noise.sample(tasks, 30):
            await asyncio.sleep(noise.random() / 500)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (queue.running, queue.waiting, held) == (0, 0, 0) and not queue._turns and not +queue._running

    asyncio.run(play())
