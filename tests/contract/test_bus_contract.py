"""What the services rely on in a bus holds for NATS and for the simulated one."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from broker import Broker
from bus_bench import (
    ACK_WAIT,
    Bench,
    Inbox,
    Run,
    consuming,
    eventually,
    new_queue,
    publish,
    run_really,
    run_simulated,
)
from nats.js.api import RetentionPolicy

from shared.bus.port import BusUnavailable, Delivery, Done, MessageBus, Retry, StreamMissing, Verdict
from shared.bus.topology import Queue
from shared.events.messages import MAX_MESSAGE_BYTES


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    running = Broker(tmp_path_factory.mktemp("nats"))
    running.start()
    yield running
    running.kill()


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.integration)])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "simulated":
        return run_simulated(seed=7)
    return run_really(request.getfixturevalue("broker"))


async def opened(
    bench: Bench, retention: RetentionPolicy = RetentionPolicy.WORK_QUEUE
) -> tuple[MessageBus, Queue]:
    """A connection, and a queue that is there."""
    queue = new_queue(retention)
    await bench.ensure(queue)
    return await bench.connect(), queue


def test_messages_come_once_in_order_and_leave_a_work_queue(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)
        inbox = Inbox()
        async with consuming(bus, queue, inbox):
            await publish(bus, queue, b"a", b"b", b"c")
            await inbox.has(b"a", b"b", b"c")
            await asyncio.sleep(1.5 * ACK_WAIT)
        assert inbox.seen == [b"a", b"b", b"c"]
        assert await bench.count(queue) == 0

    run(case)


def test_messages_stay_in_a_stream_of_limits_and_come_once(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench, RetentionPolicy.LIMITS)
        inbox = Inbox()
        async with consuming(bus, queue, inbox):
            await publish(bus, queue, b"a", b"b")
            await inbox.has(b"a", b"b")
            await asyncio.sleep(1.5 * ACK_WAIT)
        assert inbox.seen == [b"a", b"b"]
        assert await bench.count(queue) == 2

    run(case)


def test_a_stream_of_limits_that_becomes_a_work_queue_is_made_anew(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, old = await opened(bench, RetentionPolicy.LIMITS)
        queue = replace(old, retention=RetentionPolicy.WORK_QUEUE)
        inbox = Inbox()
        async with consuming(bus, queue, inbox):
            await publish(bus, queue, b"a")
            await inbox.has(b"a")
            await bench.ensure(queue)
            assert await bench.count(queue) == 0
            await publish(bus, queue, b"b")
            await inbox.has(b"a", b"b")
            await eventually(lambda: is_empty(bench, queue), "what was handled leaves it")
        await publish(bus, queue, b"c")
        await bench.ensure(queue)
        assert await bench.count(queue) == 1

    run(case)


def test_the_same_message_id_is_stored_once_even_after_it_was_consumed(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)
        inbox = Inbox()
        async with consuming(bus, queue, inbox):
            await publish(bus, queue, b"a", b"a")
            await inbox.has(b"a")
            await publish(bus, queue, b"a", b"b")
            await inbox.has(b"a", b"b")
        assert await bench.count(queue) == 0

    run(case)


def test_a_server_that_starts_again_knows_the_ids_of_what_it_still_has(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)
        inbox = Inbox()
        async with consuming(bus, queue, inbox):
            await publish(bus, queue, b"consumed")
            await inbox.has(b"consumed")
        await eventually(lambda: is_empty(bench, queue), "the acknowledgement arrived")
        await publish(bus, queue, b"kept")
        await bench.stop()
        await bench.start()
        await eventually(lambda: bus.is_connected, "connected again")
        await publish(bus, queue, b"kept", b"consumed")
        assert await bench.count(queue) == 2

    run(case)


async def is_empty(bench: Bench, queue: Queue) -> bool:
    return await bench.count(queue) == 0


def test_a_handler_that_raises_gets_its_message_again_after_a_pause(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)
        times = []

        async def fail_first(_: bytes) -> Verdict:
            times.append(asyncio.get_running_loop().time())
            if len(times) == 1:
                raise ValueError("not today")
            return Done()

        inbox = Inbox(fail_first)
        async with consuming(bus, queue, inbox):
            await publish(bus, queue, b"a")
            await inbox.has(b"a", b"a")
        assert 1.9 < times[1] - times[0] < 4

    run(case)


def test_retry_delivers_again_after_its_pause(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)
        times = []

        async def later(_: bytes) -> Verdict:
            times.append(asyncio.get_running_loop().time())
            return Retry(seconds=0.5 if len(times) == 1 else 2.5) if len(times) < 3 else Done()

        inbox = Inbox(later)
        async with consuming(bus, queue, inbox):
            await publish(bus, queue, b"a")
            await inbox.has(b"a", b"a", b"a")
        first, second = (after - before for before, after in itertools.pairwise(times))
        assert 0.45 < first < 2
        assert 2.45 < second < 4

    run(case)


def test_a_handler_that_takes_long_keeps_its_message(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)

        async def slowly(_: bytes) -> Verdict:
            await asyncio.sleep(3 * ACK_WAIT)
            return Done()

        inbox = Inbox(slowly)
        async with consuming(bus, queue, inbox, concurrency=2):
            await publish(bus, queue, b"a")
            await asyncio.sleep(4.5 * ACK_WAIT)
        assert inbox.seen == [b"a"]

    run(case)


def test_the_message_of_a_worker_that_died_goes_to_another(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)

        async def never(_: bytes) -> Verdict:
            await asyncio.sleep(60)
            return Done()

        dead, alive = Inbox(never), Inbox()
        task = asyncio.create_task(bus.consume(queue, dead, concurrency=1, stop=asyncio.Event()))
        await publish(bus, queue, b"a")
        await dead.has(b"a")
        task.cancel()
        started = asyncio.get_running_loop().time()
        async with consuming(await bench.connect(), queue, alive):
            await alive.has(b"a")
        assert asyncio.get_running_loop().time() - started > 0.5 * ACK_WAIT

    run(case)


def test_no_more_are_handled_at_once_than_asked_for(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)
        running, most = 0, 0

        async def count(_: bytes) -> Verdict:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.1)
            running -= 1
            return Done()

        inbox = Inbox(count)
        payloads = [str(number).encode() for number in range(12)]
        async with consuming(bus, queue, inbox, concurrency=3):
            await publish(bus, queue, *payloads)
            await inbox.has(*payloads)
        assert most == 3

    run(case)


def test_two_workers_share_the_messages(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)

        async def slow(_: bytes) -> Verdict:
            await asyncio.sleep(0.05)
            return Done()

        first, second = Inbox(slow), Inbox(slow)
        payloads = [str(number).encode() for number in range(20)]
        async with consuming(bus, queue, first), consuming(await bench.connect(), queue, second):
            await publish(bus, queue, *payloads)
            await eventually(lambda: len(first.seen + second.seen) >= 20, "all messages")
        assert Counter(first.seen + second.seen) == Counter(payloads)
        assert first.seen
        assert second.seen

    run(case)


def test_stopping_finishes_what_is_in_hand(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)
        finished = []

        async def slowly(payload: bytes) -> Verdict:
            await asyncio.sleep(0.7)
            finished.append(payload)
            return Done()

        inbox = Inbox(slowly)
        async with consuming(bus, queue, inbox, concurrency=2):
            await publish(bus, queue, b"a", b"b", b"c")
            await inbox.has(b"a", b"b")
        assert set(finished) == set(inbox.seen)
        rest = Inbox()
        async with consuming(bus, queue, rest):
            await rest.has(*({b"a", b"b", b"c"} - set(finished)))
            await asyncio.sleep(1.5 * ACK_WAIT)
        assert Counter(finished + rest.seen) == Counter([b"a", b"b", b"c"])

    run(case)


def test_each_message_of_a_batch_has_its_verdict(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)
        batches: list[list[tuple[bytes, int]]] = []

        async def handle(deliveries: Sequence[Delivery]) -> list[Verdict]:
            batches.append([(one.payload, one.deliveries) for one in deliveries])
            return [
                Retry(seconds=0.2) if one.payload == b"b" and one.deliveries < 3 else Done()
                for one in deliveries
            ]

        stop = asyncio.Event()
        await publish(bus, queue, b"a", b"b", b"c")
        task = asyncio.create_task(bus.consume_batches(queue, handle, batch=10, stop=stop))
        await eventually(lambda: len(batches) == 3, "the one in the middle twice more")
        await asyncio.sleep(1.5 * ACK_WAIT)
        stop.set()
        await asyncio.wait_for(task, 5)
        assert batches == [[(b"a", 1), (b"b", 1), (b"c", 1)], [(b"b", 2)], [(b"b", 3)]]
        assert await bench.count(queue) == 0

    run(case)


def test_a_batch_whose_handler_raises_comes_again(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)
        seen: list[tuple[bytes, int]] = []

        async def handle(deliveries: Sequence[Delivery]) -> list[Verdict]:
            seen.extend((one.payload, one.deliveries) for one in deliveries)
            if any(one.deliveries == 1 for one in deliveries):
                raise ValueError("not today")
            return [Done() for _ in deliveries]

        stop = asyncio.Event()
        await publish(bus, queue, b"a", b"b")
        task = asyncio.create_task(bus.consume_batches(queue, handle, batch=10, stop=stop))
        await eventually(lambda: len(seen) >= 4, "both once more")
        await asyncio.sleep(1.5 * ACK_WAIT)
        stop.set()
        await asyncio.wait_for(task, 5)
        assert sorted(seen) == [(b"a", 1), (b"a", 2), (b"b", 1), (b"b", 2)]

    run(case)


def test_a_batch_that_takes_long_keeps_its_messages(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)
        seen: list[tuple[bytes, int]] = []

        async def slowly(deliveries: Sequence[Delivery]) -> list[Verdict]:
            seen.extend((one.payload, one.deliveries) for one in deliveries)
            await asyncio.sleep(3 * ACK_WAIT)
            return [Done() for _ in deliveries]

        stop = asyncio.Event()
        await publish(bus, queue, b"a", b"b")
        task = asyncio.create_task(bus.consume_batches(queue, slowly, batch=10, stop=stop))
        other = asyncio.create_task(
            (await bench.connect()).consume_batches(queue, slowly, batch=10, stop=stop)
        )
        await asyncio.sleep(4.5 * ACK_WAIT)
        stop.set()
        await asyncio.wait_for(asyncio.gather(task, other), 10)
        assert sorted(seen) == [(b"a", 1), (b"b", 1)]

    run(case)


def test_a_delivery_tells_its_subject_and_how_often_the_message_came(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench, RetentionPolicy.LIMITS)
        seen: list[Delivery] = []

        async def note(delivery: Delivery) -> Verdict:
            seen.append(delivery)
            return Retry(seconds=0.1) if delivery.deliveries < 4 else Done()

        subject = queue.subjects[0].replace(">", "a.b")
        async with consuming(bus, queue, note):
            await bus.publish(subject, b"\xff\0", message_id="1")
            await eventually(lambda: len(seen) == 4, "four deliveries")
            await asyncio.sleep(1.5 * ACK_WAIT)
        assert seen == [Delivery(subject=subject, payload=b"\xff\0", deliveries=n) for n in (1, 2, 3, 4)]
        await bench.delete(queue, only_consumer=True)
        await bench.ensure(queue)
        async with consuming(bus, queue, note):
            await eventually(lambda: len(seen) == 8, "a new consumer begins anew")
        assert [one.deliveries for one in seen[4:]] == [1, 2, 3, 4]

    run(case)


def test_how_often_a_message_came_survives_a_restart(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)
        await publish(bus, queue, b"a")
        subscription = await bus.subscribe(queue)
        for count in (1, 2):
            (message,) = await subscription.fetch(1, timeout=2)
            assert message.delivery.deliveries == count
            await message.nak(delay=0.1)
        await asyncio.sleep(0.5)
        await subscription.close()
        await bench.stop()
        await bench.start()
        seen: list[int] = []

        async def note(delivery: Delivery) -> Verdict:
            seen.append(delivery.deliveries)
            return Done()

        async with consuming(await bench.connect(), queue, note):
            await eventually(lambda: bool(seen), "it comes again")
        assert seen == [3]

    run(case)


def test_a_late_acknowledgement_counts_for_the_delivery_that_came_after_it(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)
        await publish(bus, queue, b"a")
        subscription = await bus.subscribe(queue)
        (first,) = await subscription.fetch(1, timeout=1)
        assert not await subscription.fetch(1, timeout=0.3 * ACK_WAIT)
        await asyncio.sleep(ACK_WAIT)
        (second,) = await subscription.fetch(1, timeout=1)
        assert first.delivery.payload == second.delivery.payload == b"a"
        assert (first.delivery.deliveries, second.delivery.deliveries) == (1, 2)
        await first.ack()
        assert not await subscription.fetch(1, timeout=1.5 * ACK_WAIT)
        assert await bench.count(queue) == 0
        await second.nak(delay=0)
        assert not await subscription.fetch(1, timeout=0.5)
        await subscription.close()

    run(case)


@pytest.mark.parametrize("only_consumer", [False, True])
@pytest.mark.parametrize("retention", [RetentionPolicy.WORK_QUEUE, RetentionPolicy.LIMITS])
def test_what_somebody_deletes_is_waited_for(
    run: Run, only_consumer: bool, retention: RetentionPolicy
) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench, retention)
        inbox = Inbox()
        async with consuming(bus, queue, inbox):
            await publish(bus, queue, b"a")
            await inbox.has(b"a")
            await asyncio.sleep(0.2)
            await bench.delete(queue, only_consumer=only_consumer)
            await eventually(lambda: not bus.has_streams, "its absence is noticed")
            await bench.ensure(queue)
            await publish(bus, queue, b"b")
            comes_again = only_consumer and retention is RetentionPolicy.LIMITS
            await inbox.has(b"a", b"b", *([b"a"] if comes_again else []))
            await eventually(lambda: bus.has_streams, "its presence is noticed")

    run(case)


@pytest.mark.parametrize("is_wiped", [False, True])
def test_work_goes_on_after_the_server_was_away(run: Run, is_wiped: bool) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)

        async def is_taken() -> bool:
            try:
                await publish(bus, queue, b"b")
            except BusUnavailable:
                return False
            return True

        inbox = Inbox()
        async with consuming(bus, queue, inbox):
            await publish(bus, queue, b"a")
            await inbox.has(b"a")
            await asyncio.sleep(0.2)
            await bench.stop()
            await eventually(lambda: not bus.is_connected, "the lost connection is noticed")
            with pytest.raises(BusUnavailable):
                await publish(bus, queue, b"b")
            await bench.start(is_wiped=is_wiped)
            await bench.ensure(queue)
            await eventually(is_taken, "a message is taken again")
            await inbox.has(b"a", b"b")
        assert bus.is_connected

    run(case)


def test_what_was_taken_survives_a_restart(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)
        await publish(bus, queue, b"a", b"b")
        await bench.stop()
        await bench.start()
        inbox = Inbox()
        async with consuming(bus, queue, inbox):
            await inbox.has(b"a", b"b")

    run(case)


def test_a_message_that_no_stream_takes_is_told_from_a_server_that_is_away(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await bench.connect(), new_queue()
        assert bus.has_streams
        with pytest.raises(StreamMissing):
            await publish(bus, queue, b"a")
        assert not bus.has_streams
        await bench.ensure(queue)
        await publish(bus, queue, b"a")
        assert bus.has_streams
        assert await bench.count(queue) == 1

    run(case)


def test_a_message_that_is_too_large_is_refused(run: Run) -> None:
    async def case(bench: Bench) -> None:
        bus, queue = await opened(bench)
        with pytest.raises(BusUnavailable):
            await publish(bus, queue, b"x" * (MAX_MESSAGE_BYTES + 1))
        await publish(bus, queue, b"a" * (MAX_MESSAGE_BYTES - 1000))
        assert await bench.count(queue) == 1

    run(case)
