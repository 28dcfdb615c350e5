"""`kmmhub crds`: keeps deploy/crds/ in step with the models in shared/api.

The types of pods come from a running API server, so that their schemas are Kubernetes' own and not a copy.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from shared.api.crd import KINDS, crd_manifest
from shared.domain.errors import HubError, PermanentError, TransientError

CRD_DIRECTORY = Path(__file__).resolve().parents[1] / "deploy" / "crds"
"""Where the project keeps its CRDs."""

REQUEST_SECONDS = 30.0
"""How long the API server may take to answer one request."""

app = typer.Typer(name="crds", help="Make the CRDs from the models.", no_args_is_help=True)

KubeconfigOption = Annotated[
    Path, typer.Option("--openapi-from", metavar="KUBECONFIG", help="Server that brings the types of pods.")
]
DirectoryOption = Annotated[Path, typer.Option("--directory", help="Where the CRDs are.")]


@app.command()
def write(openapi_from: KubeconfigOption, directory: DirectoryOption = CRD_DIRECTORY) -> None:
    """Write the CRDs anew."""
    for name, text in _current_files(openapi_from).items():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
        typer.echo(f"wrote {directory / name}")


@app.command()
def check(openapi_from: KubeconfigOption, directory: DirectoryOption = CRD_DIRECTORY) -> None:
    """Print a diff and fail if the CRDs are not what `write` would write."""
    stale = differences(_current_files(openapi_from), directory)
    if stale:
        typer.echo(stale, nl=False)
        typer.echo("The CRDs are not current: run `kmmhub crds write`.", err=True)
        raise typer.Exit(1)
    typer.echo(f"the CRDs in {directory} are current")


def read_openapi(kubeconfig: Path) -> tuple[dict[str, Any], str]:
    """Return an API server's OpenAPI v3 document of the API `v1`, and its version such as "1.36".

    Raises:
        PermanentError: the kubeconfig cannot be read, or the server refuses it.
        TransientError: the server does not answer.
    """
    # The package takes a second to import, which no other command should pay.
    from kubernetes import config
    from urllib3.exceptions import HTTPError

    try:
        client = config.new_client_from_config(str(kubeconfig))  # type: ignore[no-untyped-call]
    except (config.ConfigException, yaml.YAMLError, OSError) as error:
        raise PermanentError(f"The kubeconfig {kubeconfig} cannot be used: {error}") from error
    with client:
        try:
            version = _get_json(client, "/version")
            openapi = _get_json(client, "/openapi/v3/api/v1")
        except HTTPError as error:
            raise TransientError(f"The API server of {kubeconfig} does not answer: {error}") from error
    return openapi, f"{version['major']}.{version['minor'].rstrip('+')}"


def render_crds(openapi: Mapping[str, Any], kubernetes_version: str) -> dict[str, str]:
    """Return the YAML text of every CRD by file name. Same input, same text.

    Args:
        openapi: the JSON document that an API server serves at `/openapi/v3/api/v1`.
        kubernetes_version: that server's version, for the files' first line.
    """
    header = (
        "# Made by `kmmhub crds write` from the models in shared/api and the pod types of Kubernetes "
        f"{kubernetes_version}. Do not edit.\n"
    )
    return {kind.file_name: header + _yaml(crd_manifest(kind, openapi)) for kind in KINDS}


def differences(files: Mapping[str, str], directory: Path) -> str:
    """Return a unified diff from the files in a directory to the given texts; empty if there is none."""
    lines: list[str] = []
    for name, text in files.items():
        path = directory / name
        stored = path.read_text(encoding="utf-8") if path.exists() else ""
        lines += difflib.unified_diff(
            stored.splitlines(keepends=True), text.splitlines(keepends=True), str(path), f"{name} (current)"
        )
    return "".join(lines)


def _current_files(kubeconfig: Path) -> dict[str, str]:
    try:
        return render_crds(*read_openapi(kubeconfig))
    except HubError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


def _get_json(client: Any, path: str) -> dict[str, Any]:
    request = client.param_serialize(
        "GET", path, header_params={"Accept": "application/json"}, auth_settings=["BearerToken"]
    )
    response = client.call_api(*request, _request_timeout=REQUEST_SECONDS)
    answer = response.read()
    if response.status != 200:
        kind = TransientError if response.status in {429, 500, 502, 503, 504} else PermanentError
        raise kind(f"The API server does not serve {path}: {response.status} {response.reason}.")
    document: dict[str, Any] = json.loads(answer)
    return document


class _PlainDumper(yaml.SafeDumper):
    """Writes every node in full: anchors would be hard to read and to compare."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


def _yaml(manifest: Mapping[str, Any]) -> str:
    return yaml.dump(dict(manifest), Dumper=_PlainDumper, sort_keys=False, width=120, allow_unicode=True)
