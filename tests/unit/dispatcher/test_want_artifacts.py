"""Which artifacts a pass asks for, and which it leaves given up, on the simulation's store."""

import asyncio
import random

from fleet_values import CONFIGURATION, KERNELS, a_cluster, raw_spec, stored_module

from services.dispatcher.catalog import Catalog, outcome_of
from services.dispatcher.demand import Wanted
from services.dispatcher.picture import Picture, _needs
from services.dispatcher.want import forget_unneeded, want_artifacts
from shared.domain.artifact import ArtifactState
from shared.store.port import Store
from simulation.line import Line, Weather
from simulation.store import SimulatedStore, StoreState

IMAGES = {"staying": "r.example/staying:1", "going": "r.example/going:1"}


async def picture(store: Store, *names: str, going: str | None = None) -> Picture:
    """Modules of these names, each with an image of its own, on one cluster; `going` is being deleted."""
    modules = {}
    for name in names:
        spec = raw_spec({"regexp": ".", "containerImage": IMAGES[name]})
        modules[name] = Catalog().read(stored_module(spec, name=name, is_deleting=name == going))
    fleet = {"c1": a_cluster(KERNELS[0])}
    pairs = frozenset((name, "c1") for name in names)
    needs = _needs(modules, fleet, pairs, CONFIGURATION)
    async with store.begin() as transaction:
        known = await transaction.read_artifacts(
            {need.request.key for need in needs.values() if isinstance(need, Wanted)}
        )
    return Picture(
        modules=modules,
        clusters=fleet,
        works={},
        pairs=pairs,
        needs=needs,
        outcomes={place: outcome_of(need, known) for place, need in needs.items()},
        dropped=frozenset(key for key, one in known.items() if one.state is ArtifactState.UNWANTED),
    )


async def states(store: Store, seen: Picture) -> dict[str, ArtifactState]:
    """By module: where the artifact stands that it needs."""
    needs = {module: need.request.key for (module, _), need in seen.needs.items() if isinstance(need, Wanted)}
    async with store.begin() as transaction:
        known = await transaction.read_artifacts(set(needs.values()))
    return {module: known[key].state for module, key in needs.items()}


def store_in_memory() -> Store:
    state = StoreState(clock=asyncio.get_running_loop().time)
    return SimulatedStore(state, Line("test", Weather(delay=0.0), random.Random(1)))


async def test_what_only_a_module_that_is_going_needs_stays_given_up() -> None:
    store = store_in_memory()
    await want_artifacts(store, await picture(store, "staying", "going"))
    await forget_unneeded(store, await picture(store, "staying"))
    back = await picture(store, "staying", "going", going="going")
    assert await states(store, back) == {"staying": ArtifactState.WANTED, "going": ArtifactState.UNWANTED}

    _, has_announced = await want_artifacts(store, back)

    assert not has_announced, (
        "a builder would be asked at each pass for as long as a spoke delays the deletion"
    )
    assert await states(store, back) == {"staying": ArtifactState.WANTED, "going": ArtifactState.UNWANTED}


async def test_what_was_given_up_is_made_for_a_module_that_needs_it_again() -> None:
    store = store_in_memory()
    await want_artifacts(store, await picture(store, "staying", "going"))
    await forget_unneeded(store, await picture(store, "staying"))

    _, has_announced = await want_artifacts(store, await picture(store, "staying", "going"))

    assert has_announced
    assert await states(store, await picture(store, "going")) == {"going": ArtifactState.WANTED}


async def test_a_pass_over_one_module_gives_up_what_that_one_needs_no_more_and_nothing_else() -> None:
    store = store_in_memory()
    await want_artifacts(store, await picture(store, "staying", "going"))
    of_nobody = await picture(store)

    await forget_unneeded(store, of_nobody, modules=["going"])

    after = await picture(store, "staying", "going")
    assert await states(store, after) == {"staying": ArtifactState.WANTED, "going": ArtifactState.UNWANTED}
