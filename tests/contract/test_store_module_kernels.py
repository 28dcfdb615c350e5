"""What modules want, on both stores, and giving up what no module wants any more."""

import pytest
from store_fixtures import artifact_request, store

from shared.domain.artifact import ArtifactKey, ArtifactState, Stage
from shared.domain.lease import Built
from shared.store import artifacts
from shared.store.port import Store

__all__ = ["store"]  # a fixture

pytestmark = pytest.mark.integration

PLACES = (("kept", "6.1"), ("kept", "5.14"), ("other", "6.1"), ("unread", "6.1"))


async def wanted(store: Store) -> dict[tuple[str, str], ArtifactKey]:
    """An artifact for each of PLACES."""
    requests = [artifact_request(number) for number in range(len(PLACES))]
    by_place = {place: request.key for place, request in zip(PLACES, requests, strict=True)}
    async with store.begin() as transaction:
        await transaction.put_module_kernels(by_place)
        await artifacts.want(transaction, requests)
    return by_place


async def left(store: Store) -> set[str]:
    """The modules that want anything, with a `+` for each kernel."""
    async with store.begin() as transaction:
        keys = {name: await transaction.read_artifact_keys(name) for name in ("kept", "other", "unread")}
    return {name + "+" * len(found) for name, found in keys.items() if found}


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        pytest.param(None, {"kept+", "unread+"}, id="all modules"),
        pytest.param(["kept"], {"kept+", "other+", "unread+"}, id="one module"),
        pytest.param(["other"], {"kept++", "unread+"}, id="a module that is gone"),
        pytest.param(["unread"], {"kept++", "other+", "unread+"}, id="a module that cannot be read"),
        pytest.param([], {"kept++", "other+", "unread+"}, id="no module"),
    ],
)
async def test_places_of_modules_are_forgotten_but_for_those_that_stay(
    store: Store, of: list[str] | None, expected: set[str]
) -> None:
    await wanted(store)
    async with store.begin() as transaction:
        await transaction.keep_module_kernels({("kept", "6.1")}, of=of, unread={"unread"})

    assert await left(store) == expected


async def test_a_place_that_wants_another_artifact_says_so(store: Store) -> None:
    by_place = await wanted(store)
    new = artifact_request(9)
    async with store.begin() as transaction:
        replacing = await transaction.put_module_kernels(
            {("kept", "6.1"): new.key, ("kept", "6.6"): new.key, ("other", "6.1"): by_place["other", "6.1"]}
        )

    assert replacing == {new.key}
    assert await left(store) == {"kept++", "other+", "unread+"}


async def test_what_nobody_wants_is_given_up_and_its_holder_loses_the_lease(store: Store) -> None:
    by_place = await wanted(store)
    going, ready, kept = (by_place[place] for place in (PLACES[1], PLACES[2], PLACES[0]))
    built = Built(source=f"registry.example/module@sha256:{'1' * 64}", is_adopted=False)
    leases = {}
    for key in (going, ready):
        async with store.begin() as transaction:
            lease = await artifacts.take_lease(transaction, key, Stage.BUILD, owner="test", seconds=60)
            assert lease is not None
            leases[key] = lease
    async with store.begin() as transaction:
        assert await artifacts.finish(transaction, leases[ready], built, seconds=1)
        await transaction.keep_module_kernels({PLACES[0], PLACES[3]}, of=None, unread=())
        assert await artifacts.drop_unneeded(transaction) == [going]

    async with store.begin() as transaction:
        assert not await artifacts.extend_lease(transaction, leases[going], seconds=60)
        assert not await artifacts.finish(transaction, leases[going], built, seconds=1)
        known = await transaction.read_artifacts([going, ready, kept])
        assert await artifacts.drop_unneeded(transaction) == []
    assert {key: one.state for key, one in known.items()} == {
        going: ArtifactState.UNWANTED,
        ready: ArtifactState.READY,
        kept: ArtifactState.WANTED,
    }
    assert known[going].fence == leases[going].fence + 1
