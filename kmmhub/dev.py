"""`kmmhub dev`: a complete hub on this machine, for trying things out and for tests."""

import asyncio
import json
import shlex
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True)


class Output(StrEnum):
    """How a command prints."""

    text = "text"
    json = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print.")]


@app.command()
def up(
    namespace: Annotated[
        str, typer.Option(envvar="OPERATOR_NAMESPACE", help="The operator's namespace.")
    ] = "kmm-operator-system",
) -> None:
    """Start everything a hub needs, with schema, streams and resources of the product; what runs is left alone."""
    from kmmhub.install import install_hub
    from kmmhub.streams import make_streams
    from localhub.display import Display
    from localhub.hub import LocalHub
    from shared.runtime.settings import BusSettings
    from shared.store.migrate import upgrade

    console = Console(stderr=True)
    with Display(console) as display:
        hub = LocalHub(progress=display)
        addresses = hub.up()
        display("kmmhub", "brings the database's schema up to date")
        upgrade(addresses.database_url)
        display("kmmhub", "makes its streams")
        asyncio.run(make_streams(BusSettings(nats_url=SecretStr(addresses.nats_url), nats_nkey_seed=None)))
        display("kmmhub", "applies its resources")
        install_hub(addresses.kubeconfig, namespace)
        display("kmmhub", "schema, streams and resources are current", done=True)
    console.print(f"The hub is up in {hub.directory}", highlight=False, soft_wrap=True)
    console.print('To use it in this shell: eval "$(kmmhub dev env)"', highlight=False, soft_wrap=True)


@app.command()
def status(output: OutputOption = Output.text) -> None:
    """Show how each server is; ends with 1 unless all are ready."""
    from localhub.hub import LocalHub

    hub = LocalHub()
    servers = hub.status()
    if output is Output.json:
        print(json.dumps([asdict(server) for server in servers], default=str, indent=2))
    else:
        table = Table(box=None, header_style="bold")
        for column in ("SERVER", "STATE", "ADDRESS", "PID"):
            table.add_column(column)
        for server in servers:
            values = (server.name, server.state, server.address, server.pid)
            table.add_row(*("" if value is None else str(value) for value in values))
        console = Console()
        console.print(table)
        console.print(f"logs in {hub.directory}/logs", highlight=False, soft_wrap=True)
    if any(server.state not in {"ready", "given"} for server in servers):
        raise typer.Exit(1)


@app.command()
def env(
    service: Annotated[
        str | None,
        typer.Argument(help="Only what this service gets; by default an administrator's, and all."),
    ] = None,
    output: OutputOption = Output.text,
) -> None:
    """Print the addresses of the hub's servers as lines for the shell. They hold passwords."""
    from kmmhub.credentials import NAMES
    from localhub.hub import LocalHub

    if service is not None and service not in NAMES:
        raise typer.BadParameter(f"{service!r} is none of {', '.join(NAMES)}")
    environment = LocalHub().addresses().environment(service)
    if output is Output.json:
        print(json.dumps(environment, indent=2))
        return
    for name, value in environment.items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
def down(
    purge: Annotated[
        bool, typer.Option("--purge", help="Also remove everything that the hub stored.")
    ] = False,
) -> None:
    """Stop every server of the hub; its data stays for the next start."""
    from localhub.display import Display
    from localhub.hub import LocalHub

    console = Console(stderr=True)
    with Display(console) as display:
        hub = LocalHub(progress=display)
        hub.down(purge=purge)
    console.print(
        f"The hub in {hub.directory} is {'gone' if purge else 'down'}", highlight=False, soft_wrap=True
    )


@app.command()
def packages() -> None:
    """Install the Debian packages that the local hub, the demo and the tests need."""
    from localhub.debian import ensure_packages

    installed = ensure_packages(lambda line: print(line, flush=True))
    print(f"installed: {', '.join(installed)}" if installed else "every Debian package is there")
