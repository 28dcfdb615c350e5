"""`kmmhub spoke-install`: prints what installs KMM on the spokes. Nothing is sent anywhere."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from kmmhub.offline.output import UNUSABLE, StreamFormat, formatted, note
from kmmhub.spoke.selection import Selection, UnusableOptions, read_selection


class Method(StrEnum):
    """How KMM gets to the spokes."""

    OPERATOR_POLICY = "operator-policy"
    ADDON = "addon"
    POLICY_LEGACY = "policy-legacy"
    MANIFESTWORK = "manifestwork"


CARRIED = frozenset({Method.ADDON, Method.MANIFESTWORK})
"""Methods that carry KMM's own manifests; the others leave them to OLM on the spokes."""


def spoke_install(
    *,
    method: Annotated[
        Method,
        typer.Option(
            help="operator-policy: Advanced Cluster Management, or OCM with its policy add-ons, and OLM on the spokes. "
            "addon: OCM alone. policy-legacy: hubs without OperatorPolicy. manifestwork: one work per cluster."
        ),
    ] = Method.OPERATOR_POLICY,
    cluster: Annotated[
        list[str] | None, typer.Option("--cluster", metavar="NAME", help="A ManagedCluster; may be repeated.")
    ] = None,
    selector: Annotated[
        list[str] | None,
        typer.Option(
            "--selector", "-l", metavar="KEY=VALUE", help="A label of ManagedClusters; may be repeated."
        ),
    ] = None,
    openshift: Annotated[
        bool, typer.Option("--openshift", help="Red Hat's catalog and names, on OpenShift clusters only.")
    ] = False,
    manifests: Annotated[
        str | None,
        typer.Option(
            "--manifests",
            metavar="FILE",
            help="KMM's rendered manifests, for addon and manifestwork; - reads stdin.",
        ),
    ] = None,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Namespace on the hub for policy and Placement.")
    ] = "kmm-spokes",
    cluster_set: Annotated[
        str, typer.Option("--cluster-set", help="ManagedClusterSet to choose from.")
    ] = "global",
    output: Annotated[
        StreamFormat, typer.Option("-o", "--output", help="What to print.")
    ] = StreamFormat.YAML,
) -> None:
    """Print what installs KMM in managed mode on all spokes but the hub itself, or on some; for kubectl apply."""
    from shared.domain.errors import PermanentError

    try:
        selection = read_selection(cluster or (), selector or (), only_openshift=openshift)
        make = _carried if method in CARRIED else _by_policy
        objects = make(
            method,
            selection,
            manifests=manifests,
            openshift=openshift,
            namespace=namespace,
            cluster_set=cluster_set,
        )
    except PermanentError as error:
        note([f"kmmhub spoke-install: {error}"])
        raise typer.Exit(UNUSABLE) from error
    for item in objects:
        typer.echo(("---\n" if output is StreamFormat.YAML else "") + formatted(item, output), nl=False)


def _by_policy(
    method: Method,
    selection: Selection,
    *,
    manifests: str | None,
    openshift: bool,
    namespace: str,
    cluster_set: str,
) -> list[dict[str, Any]]:
    from kmmhub.spoke import policy

    if manifests is not None:
        raise UnusableOptions(f"--manifests is not for --method {method}: OLM on the spokes brings KMM")
    distribution = policy.OPENSHIFT if openshift else policy.UPSTREAM
    if method is Method.POLICY_LEGACY:
        return policy.legacy_policy(distribution, selection, namespace_name=namespace)
    return policy.operator_policy(distribution, selection, namespace_name=namespace, cluster_set=cluster_set)


def _carried(
    method: Method,
    selection: Selection,
    *,
    manifests: str | None,
    openshift: bool,
    namespace: str,
    cluster_set: str,
) -> list[dict[str, Any]]:
    from kmmhub.offline.documents import read_documents
    from kmmhub.spoke import carried

    if openshift:
        raise UnusableOptions(
            f"--openshift is not for --method {method}: the manifests say what is installed"
        )
    if manifests is None:
        raise UnusableOptions(
            f"--method {method} needs KMM's manifests: add --manifests FILE with the output of "
            "`helm template --include-crds` or `kustomize build`"
        )
    found = []
    for document in read_documents([manifests]):
        if not document.name or not isinstance(document.content.get("apiVersion"), str):
            raise UnusableOptions(f"{document.where}: apiVersion or metadata.name is missing")
        found.append(document.content)
    if method is Method.MANIFESTWORK:
        return carried.works(found, selection)
    return carried.addon(found, selection, namespace_name=namespace, cluster_set=cluster_set)
