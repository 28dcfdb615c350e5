"""What a work agent's complaint means, and what to do about it. Pure.

The texts are those of the agent and of the spoke's API server (OCM, package `work/spoke`, Kubernetes `apierrors`).
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.domain.work import ObservedWork

MAX_QUOTED = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A CamelCase reason, and what is wrong with its cure."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A complaint that we know by any of its signs."""

    signs: tuple[str, ...]
    reason: str
    cure: str


_KNOWN = (
    _Known(
        signs=("is forbidden: User",),
        reason="SpokeForbidden",
        cure="OCM's work agent on the spoke may not manage Modules; leave KMMHUB_SPOKE_PERMISSIONS on, or grant "
        "it the rights (docs/spokes.md)",
    ),
    _Known(
        signs=(
            'doesn\'t have a resource type "Module"',
            'no matches for kind "Module"',
            "modules.kmm.sigs.x-k8s.io not found",
        ),
        reason="KmmNotInstalledOnSpoke",
        cure="KMM is not installed on the spoke; `kmmhub spoke-install` prints what installs it",
    ),
    _Known(
        signs=('namespaces "',),
        reason="SpokeNamespaceMissing",
        cure="the module's spokeNamespace does not exist on the spoke; create it, or leave "
        "KMMHUB_SPOKE_PERMISSIONS on",
    ),
    _Known(
        signs=("admission webhook", "is invalid:"),
        reason="SpokeRefused",
        cure="the spoke's API server refuses the Module; correct the module",
    ),
)


def problem_of(work: ObservedWork) -> Problem | None:
    """Why the agent could not apply a work, None if it did not say so."""
    applied = work.conditions.get("Applied")
    if applied is None or applied.status != "False":
        return None
    said = work.problem or applied.message or applied.reason
    quoted = said if len(said) <= MAX_QUOTED else f"{said[:MAX_QUOTED]}…"
    for known in _KNOWN:
        if any(sign in said for sign in known.signs):
            return Problem(reason=known.reason, message=f"{known.cure}. The agent says: {quoted}")
    return Problem(reason="NotApplied", message=f"the work agent could not apply the work. It says: {quoted}")
