"""`kmmhub render`: the ManifestWorks that the hub would post for modules and clusters in files."""

from __future__ import annotations

from typing import Annotated

import typer

from kmmhub.offline.documents import (
    CLUSTER_KIND,
    MODULE_KIND,
    UnusableInput,
    modules_in,
    read_documents,
    skipped,
)
from kmmhub.offline.output import NOT_ALLOWED, UNUSABLE, StreamFormat, formatted, note

_KNOWN_KINDS = frozenset({MODULE_KIND, CLUSTER_KIND, "ConfigMap", "Secret"})
TAGS_STAY = (
    "# Images have their tags; the hub ships digests, so that its content hash is another: see --digests."
)
NO_UID = (
    "# The module has no metadata.uid in its file: the owner's uid is empty, and the content hash is another."
)


def render(
    files: Annotated[
        list[str],
        typer.Option(
            "-f",
            "--filename",
            metavar="FILE",
            help="ManagedClusterModules and ManagedClusters; - is standard input.",
        ),
    ],
    more: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="More such files.")] = None,
    digests: Annotated[
        str | None, typer.Option("--digests", metavar="FILE", help="Map from image references to digests.")
    ] = None,
    output: Annotated[
        StreamFormat, typer.Option("-o", "--output", help="What to print.")
    ] = StreamFormat.YAML,
) -> None:
    """Print the ManifestWorks for modules and clusters, without a server. What is missing is on standard error."""
    # It takes half a second to import what the services stand on; no other command should pay for that.
    from kmmhub.offline import fleet

    try:
        documents = read_documents([*files, *(more or ())])
        modules = [fleet.read_module(document) for document in modules_in(documents, ", ".join(files))]
        clusters = fleet.read_clusters(documents)
        known = None if digests is None else fleet.read_digests(digests)
    except UnusableInput as error:
        note([f"kmmhub render: {error}"])
        raise typer.Exit(UNUSABLE) from error
    note(skipped(documents, [document for document in documents if document.kind in _KNOWN_KINDS]))
    note(fleet.claim_problems(clusters))
    if not clusters:
        note([f"there is no {CLUSTER_KIND} in the files: no works"])
    has_failed = False
    for module in modules:
        rendered = fleet.render_module(module, clusters, known)
        note(rendered.lines)
        has_failed = has_failed or rendered.has_failed
        comments = [TAGS_STAY] * (known is None) + [NO_UID] * (not module.module.uid)
        for work in rendered.works:
            print_document(formatted(work, output), comments if output is StreamFormat.YAML else [])
    if has_failed:
        raise typer.Exit(NOT_ALLOWED)


def print_document(text: str, comments: list[str]) -> None:
    """Print one document of a stream: JSON stands on a line of its own, YAML after a separator and comments."""
    if text.startswith("{"):
        print(text, end="")
    else:
        print("\n".join(["---", *comments, text]), end="")
