"""What goes wrong: drawn from the seed, put right again after a while, and all of it put right for the calm."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from shared.bus.port import BusUnavailable
from shared.bus.topology import QUEUES
from simulation.line import LineBroken
from simulation.world import SERVICES, World

WORKERS = tuple(name for name in SERVICES if name.startswith(("builder", "signer")))


@dataclass(slots=True)
class Nemesis:
    """Breaks things. `gentle`: only what loses no message and kills nobody, for proofs without healers."""

    world: World
    chance: random.Random
    gentle: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def act(self) -> None:
        """Begin one fault; it ends by itself."""
        gentle: list[Callable[[], Coroutine[Any, Any, None]]] = [
            self.slow_lines,
            self.cut_watches,
            self.compact,
            self.duplicate,
            self.poison,
            self.restart,
        ]
        harsh: list[Callable[[], Coroutine[Any, Any, None]]] = [
            self.kill,
            self.kill,
            self.kill,
            self.freeze,
            self.freeze,
            self.cut_off,
            self.cut_off,
            self.lose_packets,
            self.silence_watches,
            self.stop_broker,
            self.wipe_broker,
            self.delete_stream,
            self.forget,
            self.crash_store,
            self.stop_store,
            self.break_registry,
        ]
        fault = self.chance.choice(gentle if self.gentle else gentle + harsh)
        self.counts[fault.__name__] += 1
        self.world.note(f"fault: {fault.__name__.replace('_', ' ')}")
        task = asyncio.get_running_loop().create_task(fault(), name=fault.__name__)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def heal(self) -> None:
        """End all faults; everything runs."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        for name in SERVICES:
            self.world.processes[name].resume()
            self.world.start(name)

    # Processes

    async def kill(self) -> None:
        """Kill -9, and a new life after a while."""
        name = self._service()
        self.world.processes[name].kill()
        await self._while(20.0)
        self.world.start(name)

    async def restart(self) -> None:
        """A rollout: SIGTERM, then the next life."""
        name = self._service()
        process = self.world.processes[name]
        process.stop()
        for _ in range(25):
            await asyncio.sleep(1.0)
            if not process.is_alive:
                break
        process.kill()
        self.world.start(name)

    async def freeze(self) -> None:
        """SIGSTOP, mostly of a worker, and perhaps for longer than a lease."""
        process = self.world.processes[self.chance.choice((*WORKERS, *SERVICES))]
        process.pause()
        await self._while(90.0)
        process.resume()

    # Lines

    async def slow_lines(self) -> None:
        """Everything takes longer."""
        self.world.weather.delay = 0.5
        await self._while(20.0)
        self.world.weather.delay = 0.005

    async def cut_off(self) -> None:
        """One worker cannot reach the store, and works on."""
        process = self.world.processes[self.chance.choice(WORKERS)]
        lines = [line for line in process.lines if line.to == "store"]
        for line in lines:
            line.is_cut = True
        await self._while(90.0)
        for line in lines:
            line.is_cut = False

    async def lose_packets(self) -> None:
        """Requests and answers get lost."""
        self.world.weather.loss = self.world.weather.lost_answers = 0.1
        await self._while(30.0)
        self.world.weather.loss = self.world.weather.lost_answers = 0.0

    # The hub

    async def cut_watches(self) -> None:
        """The API server ends all watches."""
        self.world.hub.cut_watches()

    async def silence_watches(self) -> None:
        """All watches go half-open: nothing comes any more, and no end."""
        self.world.hub.silence_watches()

    async def compact(self) -> None:
        """The API server forgets the past, and whoever watched must list again."""
        self.world.hub.compact()
        self.world.hub.cut_watches()

    # The bus

    async def duplicate(self) -> None:
        """Messages come twice and in any order."""
        weather = self.world.broker_weather
        weather.duplicates = weather.disorder = 0.3
        await self._while(60.0)
        weather.duplicates = weather.disorder = 0.0

    async def poison(self) -> None:
        """Somebody sends what nobody can read."""
        subject = f"{self.chance.choice(('kmm.changed.module', 'kmm.build', 'kmm.sign'))}.poison"
        payload = self.chance.choice(
            (b"\xff\0", b"{}", b'{"type":"kmm.requested.v9"}', self.chance.randbytes(200))
        )
        self.world.poison.add(payload)
        with contextlib.suppress(BusUnavailable, LineBroken):
            self.world.broker.publish(subject, payload, f"poison-{self.chance.getrandbits(64)}")

    async def forget(self) -> None:
        """Messages are acknowledged and lost."""
        self.world.broker_weather.amnesia = 0.3
        await self._while(30.0)
        self.world.broker_weather.amnesia = 0.0

    async def stop_broker(self) -> None:
        """NATS is away."""
        self.world.broker.stop()
        await self._while(60.0)
        self.world.broker.start()

    async def wipe_broker(self) -> None:
        """NATS comes back empty."""
        self.world.broker.stop()
        await self._while(10.0)
        self.world.broker.start(is_wiped=True)

    async def delete_stream(self) -> None:
        """Somebody deletes a stream, or its consumer."""
        queue = self.chance.choice(QUEUES)
        if self.chance.random() < 0.5:
            self.world.broker.delete_stream(queue.stream)
        else:
            self.world.broker.delete_consumer(queue.stream)

    # Store and registry

    async def crash_store(self) -> None:
        """Postgres is killed and started."""
        self.world.store.crash()

    async def stop_store(self) -> None:
        """Postgres is away."""
        self.world.store.crash()
        self.world.store.is_down = True
        await self._while(30.0)
        self.world.store.is_down = False

    async def break_registry(self) -> None:
        """The registry is away, or answers with errors."""
        self.world.registry.weather.refusals = 0.5
        await self._while(40.0)
        self.world.registry.weather.refusals = 0.0

    def _service(self) -> str:
        return self.chance.choice(SERVICES)

    async def _while(self, longest: float) -> None:
        await asyncio.sleep(self.chance.random() * longest)
