"""Modules read once per generation, and what they need for each kernel. Pure, with a cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.dispatcher.assemble import Shipment, pin
from services.dispatcher.decide import KernelOutcome, Module, Pending
from services.dispatcher.demand import Configuration, Unmet, Wanted, demand
from services.dispatcher.report import PROGRESS
from services.dispatcher.stored import StoredModule
from shared.domain.artifact import Artifact, ArtifactKey, ArtifactState
from shared.domain.errors import PermanentError
from shared.domain.kernel import KernelVersion
from shared.domain.mapping import MappingIndex
from shared.domain.module import (
    RESERVED_NAME,
    InvalidModule,
    KernelMapping,
    ModuleLoader,
    ModuleSpec,
    parse_module,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadModule:
    """A stored module with its spec read.

    Attributes:
        module: for decisions.
        index: its mappings, None if the spec could not be read.
        problem: (reason, message) if the spec is wrong as a whole.
    """

    stored: StoredModule
    module: Module
    index: MappingIndex | None
    problem: tuple[str, str] | None

    def demand(self, kernel: KernelVersion, configuration: Configuration) -> Wanted | Unmet:
        """What this module needs for a kernel; only for a module that could be read."""
        assert self.module.spec is not None
        assert self.index is not None
        return demand(
            module=self.module.name,
            spec=self.module.spec,
            index=self.index,
            kernel=kernel,
            configuration=configuration,
        )


class Catalog:
    """Keeps the reading of each module until its generation changes."""

    def __init__(self) -> None:
        self._read: dict[
            str, tuple[tuple[str, int], ModuleSpec | None, MappingIndex | None, PermanentError | None]
        ]
        self._read = {}

    def read(self, stored: StoredModule) -> ReadModule:
        """Read a module; a spec that cannot be read is no error but part of the answer."""
        identity = (stored.uid, stored.generation)
        known = self._read.get(stored.name)
        if known is None or known[0] != identity:
            known = (identity, *_parse(stored.name, stored.spec))
            self._read[stored.name] = known
        _, spec, index, error = known
        return ReadModule(
            stored=stored,
            module=Module(name=stored.name, uid=stored.uid, spec=spec, is_deleting=stored.is_deleting),
            index=index,
            problem=None if error is None else (error.reason, str(error)),
        )

    def forget_all_but(self, names: Iterable[str]) -> None:
        """Drop modules that no longer exist."""
        for name in set(self._read) - set(names):
            del self._read[name]


def unread(stored: StoredModule, problem: tuple[str, str]) -> ReadModule:
    """A module that cannot be read because of a problem (reason, message) that is not the user's."""
    module = Module(name=stored.name, uid=stored.uid, spec=None, is_deleting=stored.is_deleting)
    return ReadModule(stored=stored, module=module, index=None, problem=problem)


def _parse(
    name: str, spec: Mapping[str, object]
) -> tuple[ModuleSpec | None, MappingIndex | None, PermanentError | None]:
    if name == RESERVED_NAME:  # from before admission refused it
        problem = (
            f"metadata.name: {name} is the name of the hub's own works; make the module under another name"
        )
        return None, None, InvalidModule(problem)
    try:
        parsed = parse_module(spec)
    except PermanentError as error:
        return None, None, error
    index = MappingIndex(parsed)
    return parsed, index, index.broken


def names_used(spec: ModuleSpec) -> frozenset[str]:
    """Names of the ConfigMaps and Secrets that a module's spec mentions anywhere."""
    names: set[str | None] = {spec.image_repo_secret}
    loader = spec.loader
    levels: list[ModuleLoader | KernelMapping] = [] if loader is None else [loader, *loader.mappings]
    for level in levels:
        if level.build is not None:
            names |= {level.build.dockerfile_config_map, *level.build.secrets}
        if level.sign is not None:
            names |= {level.sign.key_secret, level.sign.cert_secret}
    return frozenset(name for name in names if name)


def outcome_of(need: Wanted | Unmet, artifacts: Mapping[ArtifactKey, Artifact]) -> KernelOutcome:
    """Where a kernel stands: what can be shipped, or why nothing can."""
    if isinstance(need, Unmet):
        return Pending(reason=need.reason, message=need.message, is_match=need.is_match)
    artifact = artifacts.get(need.request.key)
    if artifact is not None and artifact.state is ArtifactState.READY and artifact.digest is not None:
        return Shipment(
            resolution=need.resolution,
            image=pin(need.resolution.image, artifact.digest),
            tag=need.resolution.image,
        )
    is_known = artifact is not None and artifact.state is not ArtifactState.UNWANTED
    state = artifact.state if artifact is not None and is_known else ArtifactState.WANTED
    if artifact is not None and artifact.reason is not None:
        again = "" if state is ArtifactState.FAILED else " (it is tried again)"
        return Pending(
            reason=artifact.reason, message=f"image {need.request.target}: {artifact.message}{again}"
        )
    reason, words = PROGRESS[state]
    return Pending(reason=reason, message=f"image {need.request.target} {words}")
