"""Replicas that contend for one Lease of the real API server: stopped, frozen, killed, cut off, without rights."""

import asyncio
import contextlib
import json
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml
from cut_line import cut_line
from kubectl import Kubectl
from running_services import ROOT, eventually

from localhub.hub import HubAddresses
from shared.domain.leadership import Terms, held_spec, next_step, read_lease
from shared.kube.client import LEASES, NAMESPACES, KubeClient
from shared.kube.leadership import lead, make_identity
from shared.runtime import clock

pytestmark = pytest.mark.integration

TERMS = Terms(lease_seconds=3)
LAG = 1.0
"""What a busy machine may be late."""


class Replica:
    """One process of `replica.py`."""

    def __init__(self, log: Path, *, kubeconfig: Path, namespace: str, name: str, seconds: int) -> None:
        self.log = log
        with log.open("ab") as output, log.with_suffix(".err").open("ab") as errors:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, str(Path(__file__).with_name("replica.py"))),
                    *("--kubeconfig", str(kubeconfig), "--namespace", namespace),
                    *("--name", name, "--seconds", str(seconds)),
                ],
                cwd=ROOT,
                env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(log.parent)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )

    def said(self, what: str | None = None) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]
        return [line for line in lines if what in {None, line["what"]}]

    def logged(self) -> str:
        return self.log.with_suffix(".err").read_text()

    def times(self) -> list[float]:
        """When it led."""
        return [line["at"] for line in self.said("leads")]

    @property
    def state(self) -> tuple[bool, float]:
        """Whether it is ready, and its metric."""
        last = self.said("state")[-1]
        return last["ready"], last["leading"]

    async def leads(self, *, again: int = 1, seconds: float = 20) -> float:
        """Wait until it began to lead (for the nth time); when that was."""

        async def look() -> list[dict[str, Any]] | None:
            begun = self.said("begins")
            return begun if len(begun) >= again else None

        begun = await eventually(look, what=f"{self.log.stem} leads", seconds=seconds, every=0.02)
        return float(begun[again - 1]["at"])

    async def is_in(self, state: tuple[bool, float], *, seconds: float = 20) -> None:
        async def look() -> bool:
            assert self.said("state"), self.logged()
            assert self.state == state
            return True

        await eventually(look, what=f"{self.log.stem} is {state}", seconds=seconds, every=0.02)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


Start = Callable[..., Replica]


@pytest.fixture
async def kube(hub: HubAddresses) -> AsyncIterator[KubeClient]:
    async with await KubeClient.connect(hub.kubeconfig) as opened:
        yield opened


@pytest.fixture
async def namespace(kube: KubeClient) -> str:
    name = f"lease-{secrets.token_hex(4)}"
    await kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


@pytest.fixture
def start(hub: HubAddresses, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """Starts replicas; all are killed at the end."""
    replicas: list[Replica] = []

    def begin(name: str, *, kubeconfig: Path = hub.kubeconfig, seconds: int = TERMS.lease_seconds) -> Replica:
        replica = Replica(
            tmp_path / f"{name}.log", kubeconfig=kubeconfig, namespace=namespace, name="test", seconds=seconds
        )
        replicas.append(replica)
        return replica

    yield begin
    for replica in replicas:
        replica.process.kill()
        replica.process.wait(timeout=10)


def assert_never_both(first: Replica, second: Replica) -> None:
    """No moment of one lies within a time in which the other one led."""
    for one, other in ((first, second), (second, first)):
        began: float | None = None
        for line in other.said():
            if line["what"] == "begins":
                began = line["at"]
            elif line["what"] == "ends" and began is not None:
                assert not [at for at in one.times() if began < at < line["at"]]
                began = None
        if began is not None:
            last = max(other.times(), default=began)
            assert not [at for at in one.times() if began < at < last]


async def test_a_clean_stop_hands_over_within_two_seconds(
    kube: KubeClient, namespace: str, start: Start
) -> None:
    first = start("first", seconds=15)
    await first.leads()
    second = start("second", seconds=15)
    await second.is_in((True, 0.0))
    await first.is_in((True, 1.0))
    lease = await kube.get(LEASES, "test", namespace=namespace)
    assert lease["spec"]["leaseDurationSeconds"] == 15
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", lease["spec"]["renewTime"])

    assert first.end() == 0

    assert await second.leads() - first.said("ends")[-1]["at"] < 2
    assert_never_both(first, second)
    after = await kube.get(LEASES, "test", namespace=namespace)
    assert after["spec"]["holderIdentity"] != lease["spec"]["holderIdentity"]
    assert after["spec"]["leaseTransitions"] == lease["spec"]["leaseTransitions"] + 1
    assert second.end() == 0
    released = read_lease(await kube.get(LEASES, "test", namespace=namespace))
    assert (released.holder, released.transitions) == ("", after["spec"]["leaseTransitions"])


async def test_a_killed_leader_is_replaced_within_its_lease(start: Start) -> None:
    first = start("first")
    await first.leads()
    second = start("second")
    await second.is_in((True, 0.0))
    first.process.kill()
    began = await second.leads()
    limit = TERMS.lease_seconds + TERMS.poll_interval + LAG
    assert TERMS.renew_seconds - LAG < began - first.times()[-1] < limit


async def test_a_frozen_leader_is_replaced_and_does_nothing_more_when_it_goes_on(start: Start) -> None:
    first = start("first")
    await first.leads()
    second = start("second")
    await second.is_in((True, 0.0))
    first.process.send_signal(signal.SIGSTOP)
    await second.leads()
    led = len(first.times())
    first.process.send_signal(signal.SIGCONT)
    await first.is_in((True, 0.0))
    assert len(first.times()) == led
    assert_never_both(first, second)
    assert "could not be renewed in time" in first.logged()

    assert second.end() == 0
    await first.leads(again=2)
    assert_never_both(first, second)


async def test_a_leader_that_is_cut_off_stops_before_another_takes_over(
    hub: HubAddresses, start: Start, tmp_path: Path
) -> None:
    async with cut_line(hub.kubeconfig, tmp_path / "weak") as line:
        first = start("first", kubeconfig=tmp_path / "weak")
        await first.leads()
        second = start("second")
        await second.is_in((True, 0.0))
        loop = asyncio.get_running_loop()
        silent = loop.time()
        line.silence()

        began = await second.leads()
        ended = first.said("ends")[-1]["at"]
        assert ended < began
        assert ended - silent < TERMS.renew_seconds + LAG
        await first.is_in((False, 0.0))
        assert "did not answer in 0.7 seconds" in first.logged()

        line.speak()
        await first.is_in((True, 0.0))
        assert_never_both(first, second)


async def test_a_leader_leads_on_through_a_short_outage(
    hub: HubAddresses, start: Start, tmp_path: Path
) -> None:
    async with cut_line(hub.kubeconfig, tmp_path / "weak") as line:
        first = start("first", kubeconfig=tmp_path / "weak")
        await first.leads()
        line.cut()
        line.silence()
        await asyncio.sleep(TERMS.renew_seconds / 2)
        line.cut()
        line.speak()
        await asyncio.sleep(TERMS.lease_seconds)
        assert first.said("ends") == []
        assert first.state == (True, 1.0)


async def test_a_lease_that_somebody_deletes_stays_the_leader_s(
    kube: KubeClient, namespace: str, start: Start
) -> None:
    first = start("first")
    await first.leads()
    second = start("second")
    await second.is_in((True, 0.0))
    await kube.delete(LEASES, "test", namespace=namespace)
    await asyncio.sleep(TERMS.lease_seconds + TERMS.poll_interval)
    assert first.said("ends") == second.said("begins") == []


async def test_a_replica_without_rights_says_what_it_lacks_and_leads_once_it_has_them(
    hub: HubAddresses, namespace: str, start: Start, tmp_path: Path
) -> None:
    kubectl = Kubectl(hub)
    nobody = start("nobody", kubeconfig=service_account(hub, kubectl, namespace, tmp_path / "nobody"))

    async def look() -> bool:
        return "get, create and patch on leases" in nobody.logged()

    await eventually(look, what="it says what it lacks")
    await asyncio.sleep(1)
    assert nobody.logged().count("leader.no_lease") == 1
    assert f"lease {namespace}/test" in nobody.logged()
    assert nobody.state == (False, 0.0)

    role = ("create", "role", "leader", "--verb=get,create,patch", "--resource=leases.coordination.k8s.io")
    kubectl.read(f"--namespace={namespace}", *role)
    binding = ("create", "rolebinding", "leader", "--role=leader", f"--serviceaccount={namespace}:replica")
    kubectl.read(f"--namespace={namespace}", *binding)
    await nobody.leads()
    assert nobody.end() == 0


async def test_a_namespace_that_is_missing_is_named(kube: KubeClient) -> None:
    stop = asyncio.Event()
    with structlog.testing.capture_logs() as logs:
        async with running(kube, namespace="does-not-exist", stop=stop, work=never):
            await asyncio.sleep(1)
            stop.set()
    (told,) = [line["error"] for line in logs if line["event"].startswith("leader.")]
    assert "lease does-not-exist/in-process" in told
    assert "create the namespace" in told


async def test_work_is_cancelled_when_another_may_lead(kube: KubeClient, namespace: str) -> None:
    cancelled = asyncio.Event()

    async def stubborn(_: asyncio.Event) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    stop = asyncio.Event()
    async with running(kube, namespace=namespace, stop=stop, work=stubborn):
        await held(kube, namespace)
        other = await take_away(kube, namespace)
        async with asyncio.timeout(TERMS.renew_interval + LAG):
            await cancelled.wait()
        stop.set()
    assert read_lease(await kube.get(LEASES, "in-process", namespace=namespace)).holder == other


async def test_the_lease_is_kept_while_work_ends_and_given_back_after(
    kube: KubeClient, namespace: str
) -> None:
    seen: list[str] = []

    async def slow(over: asyncio.Event) -> None:
        await over.wait()
        await asyncio.sleep(TERMS.lease_seconds + 1)
        seen.append(read_lease(await kube.get(LEASES, "in-process", namespace=namespace)).holder)

    stop = asyncio.Event()
    async with running(kube, namespace=namespace, stop=stop, work=slow) as identity:
        await held(kube, namespace)
        stop.set()
    assert seen == [identity]
    assert read_lease(await kube.get(LEASES, "in-process", namespace=namespace)).holder == ""


async def test_work_that_fails_gives_the_lease_back_and_is_told(kube: KubeClient, namespace: str) -> None:
    async def broken(_: asyncio.Event) -> None:
        raise RuntimeError("broken work")

    with pytest.raises(RuntimeError, match="broken work"):
        async with running(kube, namespace=namespace, stop=asyncio.Event(), work=broken):
            pass
    assert read_lease(await kube.get(LEASES, "in-process", namespace=namespace)).holder == ""


async def never(_: asyncio.Event) -> None:
    raise AssertionError("it led")


@contextlib.asynccontextmanager
async def running(
    kube: KubeClient,
    *,
    namespace: str,
    stop: asyncio.Event,
    work: Callable[[asyncio.Event], Any],
) -> AsyncIterator[str]:
    """`lead` beside the test; its end is waited for."""
    identity = make_identity()
    task = asyncio.create_task(
        lead(
            kube,
            name="in-process",
            namespace=namespace,
            identity=identity,
            stop=stop,
            work=work,
            terms=TERMS,
        )
    )
    try:
        yield identity
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def held(kube: KubeClient, namespace: str) -> None:
    async def look() -> bool:
        return any(
            item["spec"].get("holderIdentity")
            for item in json.loads(await kube.list_page(LEASES, namespace=namespace))["items"]
        )

    await eventually(look, what="the lease is held")


async def take_away(kube: KubeClient, namespace: str) -> str:
    """Another one holds the Lease, whatever the rules say."""
    record = read_lease(await kube.get(LEASES, "in-process", namespace=namespace))
    step = next_step(None, identity="other", now=0, terms=TERMS)
    assert not hasattr(step, "seconds")
    spec = held_spec(step, identity="other", terms=TERMS, wall=clock.now()) | {
        "leaseTransitions": record.transitions + 1
    }
    await kube.merge_patch(LEASES, "in-process", {"spec": spec}, namespace=namespace)
    return "other"


def service_account(hub: HubAddresses, kubectl: Kubectl, namespace: str, kubeconfig: Path) -> Path:
    """A kubeconfig of a service account that may do nothing yet."""
    kubectl.read(f"--namespace={namespace}", "create", "serviceaccount", "replica")
    token = kubectl.run(f"--namespace={namespace}", "create", "token", "replica")
    assert token.returncode == 0, token.stderr
    document = yaml.safe_load(hub.kubeconfig.read_text())
    document["users"][0]["user"] = {"token": token.stdout.strip()}
    kubeconfig.write_text(yaml.safe_dump(document))
    return kubeconfig
