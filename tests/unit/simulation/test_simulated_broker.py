"""The simulated broker's weather: bad as it may be, it breaks no promise but those it says it breaks."""

import asyncio
from collections import Counter

import pytest

from shared.bus.port import BusUnavailable, Delivery, Done, Verdict
from shared.bus.topology import BUILDS, CHANGES, QUEUES
from simulation.broker import Broker, BrokerWeather
from simulation.bus import ANSWER_SECONDS, SimulatedBus
from simulation.line import Line, Weather
from simulation.loop import SimulationLoop
from simulation.run import simulate

MESSAGES = [f"{number}".encode() for number in range(40)]


def open_bus(
    loop: SimulationLoop, broker_weather: BrokerWeather | None = None, weather: Weather | None = None
) -> SimulatedBus:
    broker = Broker(clock=loop.time, chance=loop.chance("broker"), weather=broker_weather)
    broker.ensure()
    return SimulatedBus(broker, Line("worker", weather or Weather(), loop.chance("line")))


async def consume_all(bus: SimulatedBus, seconds: float = 300.0) -> list[bytes]:
    """What a worker of three slots gets of `MESSAGES` in that time."""
    seen: list[bytes] = []

    async def handle(delivery: Delivery) -> Verdict:
        seen.append(delivery.payload)
        await asyncio.sleep(0.5)
        return Done()

    for payload in MESSAGES:
        while True:
            try:
                await bus.publish("kmm.build.x", payload, message_id=payload.decode())
            except BusUnavailable:
                continue
            break
    stop = asyncio.Event()
    task = asyncio.create_task(bus.consume(BUILDS, handle, concurrency=3, stop=stop))
    await asyncio.sleep(seconds)
    stop.set()
    await task
    return seen


@pytest.mark.parametrize("seed", range(5))
def test_in_fine_weather_each_message_comes_once_and_in_order(seed: int) -> None:
    async def main(loop: SimulationLoop) -> None:
        bus = open_bus(loop)
        seen = await consume_all(bus)
        assert Counter(seen) == Counter(MESSAGES)
        assert bus.broker.payloads(BUILDS.stream) == []

    simulate(main, seed=seed)


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_lost_on_the_way_every_message_comes_and_the_queue_gets_empty(seed: int) -> None:
    async def main(loop: SimulationLoop) -> None:
        bus = open_bus(
            loop, BrokerWeather(duplicates=0.2, disorder=0.5), Weather(loss=0.1, lost_answers=0.2, delay=0.1)
        )
        seen = await consume_all(bus, seconds=900.0)
        assert set(seen) == set(MESSAGES)
        assert len(seen) > len(MESSAGES)
        assert bus.broker.payloads(BUILDS.stream) == []

    simulate(main, seed=seed)


def test_a_seed_repeats_a_run_and_another_gives_another() -> None:
    async def main(loop: SimulationLoop) -> list[bytes]:
        return await consume_all(
            open_bus(loop, BrokerWeather(duplicates=0.3, disorder=0.5), Weather(loss=0.1))
        )

    assert simulate(main, seed=1) == simulate(main, seed=1)
    assert simulate(main, seed=1) != simulate(main, seed=2)


def test_amnesia_loses_acknowledged_messages_that_may_be_published_again() -> None:
    async def main(loop: SimulationLoop) -> None:
        bus = open_bus(loop, BrokerWeather(amnesia=1.0))
        told: list[str] = []
        bus.broker.observe = told.append
        await bus.publish("kmm.build.x", b"a", message_id="a")
        assert bus.broker.payloads(BUILDS.stream) == []
        bus.broker.weather.amnesia = 0.0
        await bus.publish("kmm.build.x", b"a", message_id="a")
        assert bus.broker.payloads(BUILDS.stream) == [b"a"]
        assert told == ["a", "a"]

    simulate(main, seed=1)


def test_messages_and_ids_get_old() -> None:
    async def main(loop: SimulationLoop) -> None:
        bus = open_bus(loop)
        for _ in range(2):
            await bus.publish("kmm.changed.x", b"a", message_id="a")
        assert bus.broker.payloads(CHANGES.stream) == [b"a"]
        await asyncio.sleep(121)
        await bus.publish("kmm.changed.x", b"a", message_id="a")
        assert bus.broker.payloads(CHANGES.stream) == [b"a", b"a"]
        await asyncio.sleep(CHANGES.max_age - 60)
        subscription = await bus.subscribe(CHANGES)
        assert [message.delivery.payload for message in await subscription.fetch(10, timeout=1)] == [b"a"]

    simulate(main, seed=1)


def test_a_lost_acknowledgement_of_a_publication_takes_as_long_as_the_client_waits() -> None:
    async def main(loop: SimulationLoop) -> None:
        bus = open_bus(loop, weather=Weather(lost_answers=1.0))
        started = loop.time()
        with pytest.raises(BusUnavailable):
            await bus.publish("kmm.build.x", b"a", message_id="a")
        assert loop.time() - started >= ANSWER_SECONDS
        assert bus.broker.payloads(BUILDS.stream) == [b"a"]

    simulate(main, seed=1)


def test_an_idle_worker_costs_a_few_steps_a_second() -> None:
    async def main(loop: SimulationLoop) -> int:
        bus = open_bus(loop)
        stop = asyncio.Event()

        async def never(_: Delivery) -> Verdict:
            raise AssertionError

        tasks = [asyncio.create_task(bus.consume(queue, never, concurrency=1, stop=stop)) for queue in QUEUES]
        await asyncio.sleep(100)
        stop.set()
        await asyncio.gather(*tasks)
        return loop.steps

    assert simulate(main, seed=1) / 300 < 20
