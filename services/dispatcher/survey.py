"""From a picture to what a module's status is made of. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.dispatcher.catalog import ReadModule
from services.dispatcher.decide import Leave
from services.dispatcher.picture import Picture
from services.dispatcher.report import Place
from services.dispatcher.scope import Pair
from services.dispatcher.status import Survey


def survey_module(picture: Picture, read: ReadModule, refusals: Mapping[Pair, tuple[str, str]]) -> Survey:
    """Gather what concerns one module.

    Args:
        picture: holds the module with all of its clusters.
        read: the module.
        refusals: (reason, message) of writes that the API server refused, by (module, cluster).
    """
    pairs = sorted(pair for pair in picture.pairs if pair[0] == read.module.name)
    return survey_places(picture, read, [place_of(picture, pair, refusals) for pair in pairs])


def pairs_by_module(picture: Picture) -> dict[str, list[Pair]]:
    """The pairs of each module, by cluster."""
    found: dict[str, list[Pair]] = {}
    for pair in sorted(picture.pairs):
        found.setdefault(pair[0], []).append(pair)
    return found


def survey_places(picture: Picture, read: ReadModule, places: Sequence[Place]) -> Survey:
    """As `survey_module`, with the places of all the module's pairs, by cluster."""
    name = read.module.name
    return Survey(
        generation=read.stored.generation,
        places=places,
        outcomes={
            kernel: outcome for (module, kernel), outcome in picture.outcomes.items() if module == name
        },
        problem=read.problem,
        is_readable=read.module.spec is not None,
    )


def place_of(picture: Picture, pair: Pair, refusals: Mapping[Pair, tuple[str, str]]) -> Place:
    """Where one pair stands; `refusals` as for `survey_module`."""
    cluster = picture.clusters.get(pair[1])
    stored = picture.works.get(pair)
    decision = picture.decide(pair)
    return Place(
        cluster=pair[1],
        decision=decision,
        work=stored.work if stored else None,
        kernels=cluster.kernels if cluster else (),
        has_claim=cluster.has_claim if cluster else True,
        bad_kernels=cluster.bad_kernels if cluster else (),
        claim_is_near_limit=cluster.claim_is_near_limit if cluster else False,
        # What was refused once and is not asked for any more is no trouble.
        refusal=None if isinstance(decision, Leave) else refusals.get(pair),
    )
