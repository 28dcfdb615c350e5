"""A replica of a service in a process of its own that a test may freeze and kill: it says when it leads.

Each line on standard output is JSON: what happened, and when by the machine's monotonic clock.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from pathlib import Path

from prometheus_client import REGISTRY

from shared.domain.leadership import Terms
from shared.kube.client import KubeClient
from shared.kube.leadership import Check, lead, make_identity
from shared.runtime.logging import configure_logging

TICK_SECONDS = 0.02


def say(happening: str, **more: object) -> None:
    sys.stdout.write(json.dumps({"what": happening, "at": time.monotonic(), **more}) + "\n")
    sys.stdout.flush()


async def work(over: asyncio.Event) -> None:
    """Ticks for as long as it may."""
    say("begins")
    while not over.is_set():
        say("leads")
        await asyncio.sleep(TICK_SECONDS)
    say("ends")


async def main(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    checks: dict[str, Check] = {}
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def tell_readiness() -> None:
        known: object = None
        while True:
            metric = REGISTRY.get_sample_value("kmmhub_leading", {"lease": arguments.name})
            now = {"ready": checks["lease"](), "leading": metric} if checks else None
            if now and now != known:
                say("state", **now)
                known = now
            await asyncio.sleep(TICK_SECONDS)

    telling = asyncio.create_task(tell_readiness())
    async with await KubeClient.connect(arguments.kubeconfig) as kube:
        await lead(
            kube,
            name=arguments.name,
            namespace=arguments.namespace,
            identity=make_identity(),
            stop=stop,
            work=work,
            terms=Terms(lease_seconds=arguments.seconds),
            checks=checks,
        )
    telling.cancel()
    say("stopped")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubeconfig", type=Path)
    parser.add_argument("--namespace")
    parser.add_argument("--name")
    parser.add_argument("--seconds", type=int)
    configure_logging(service="replica", style="json", level="info")
    asyncio.run(main(parser.parse_args()))
