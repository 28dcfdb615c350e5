"""From a picture to what a module's status is made of. Pure."""

from __future__ import annotations

from collections.abc import Mapping

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
    name = read.module.name
    return Survey(
        generation=read.stored.generation,
        places=[_place(picture, pair, refusals) for pair in sorted(picture.pairs) if pair[0] == name],
        outcomes={
            kernel: outcome for (module, kernel), outcome in picture.outcomes.items() if module == name
        },
        problem=read.problem,
        is_readable=read.module.spec is not None,
    )


def _place(picture: Picture, pair: Pair, refusals: Mapping[Pair, tuple[str, str]]) -> Place:
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
