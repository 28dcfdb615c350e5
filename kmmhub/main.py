"""`kmmhub`: services, installation, the local hub, the demo. Each command imports what it needs itself."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kmmhub import crds, deadletters, dev, up
from kmmhub.offline.explain import explain
from kmmhub.offline.render import render
from kmmhub.offline.validate import validate
from kmmhub.spoke_install import spoke_install
from shared.domain.errors import HubError

app = typer.Typer(
    name="kmmhub",
    help="The hub side of Kernel Module Management for fleets of edge clusters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(dev.app, name="dev", help="A complete hub on this machine.")
app.add_typer(deadletters.app, name="deadletters", help="Messages that no service could handle.")
app.add_typer(crds.app, name="crds", help="Our CustomResourceDefinitions.")
app.command(name="up")(up.up)
for offline in (validate, explain, render, spoke_install):
    app.command()(offline)


@app.command()
def watcher() -> None:
    """Run the watcher: reads the hub, stores facts, announces changes."""
    from services.watcher.main import main

    raise typer.Exit(main())


@app.command()
def dispatcher() -> None:
    """Run the dispatcher: decides, writes ManifestWorks and status."""
    from services.dispatcher.main import main

    raise typer.Exit(main())


@app.command()
def builder() -> None:
    """Run a builder: builds images that are missing. Run as many as the fleet needs."""
    from services.builder.main import main

    raise typer.Exit(main())


@app.command()
def signer() -> None:
    """Run a signer: signs kernel modules inside of images."""
    from services.signer.main import main

    raise typer.Exit(main())


@app.command()
def admission(
    print_configuration: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="Print the ValidatingWebhookConfiguration for https://host:port or namespace/service, and end.",
        ),
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="With it: what the API server checks the webhook's certificate by.")
    ] = None,
) -> None:
    """Run the optional validating webhook: refuses modules that the CRD cannot."""
    if print_configuration is None:
        from services.admission.main import main

        raise typer.Exit(main())
    from services.admission.configuration import configuration_text

    typer.echo(configuration_text(print_configuration, ca_file), nl=False)


@app.command()
def migrate(
    database_url: Annotated[
        str, typer.Option(envvar="DATABASE_URL", help="postgresql://…, as the owner", show_default=False)
    ],
    create_roles: Annotated[
        bool,
        typer.Option(
            "--create-roles",
            help="First make the services' roles, with users and passwords of DATABASE_URL_WATCHER and so on.",
        ),
    ] = False,
) -> None:
    """Bring the database's schema to the newest revision, and the services' roles to their rights."""
    from kmmhub.credentials import role_passwords
    from shared.store import roles
    from shared.store.migrate import upgrade

    if create_roles:
        environment = dict(os.environ)  # noqa: TID251 - one variable per role
        for role in roles.create_roles(database_url, role_passwords(environment)):
            typer.echo(f"role {role} is there")
    missing = upgrade(database_url)
    typer.echo("the schema and the rights are current")
    if missing:
        hint = "make them with --create-roles, or CREATE ROLE … LOGIN PASSWORD …, and migrate again"
        typer.echo(f"no such roles yet: {', '.join(missing)}; {hint}", err=True)


@app.command()
def streams(
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on, and make again within seconds whatever is lost.")
    ] = False,
    print_users: Annotated[
        str | None,
        typer.Option(
            metavar="password|nkey",
            help="Print the users of the bus and what each may do, for nats-server's configuration, and end.",
        ),
    ] = None,
    output: Annotated[dev.Output, typer.Option("--output", "-o", help="How to print.")] = dev.Output.text,
) -> None:
    """Make the streams and consumers that the services work with, as the bus user `streams`.

    What is there stays, what differs is brought to its configuration. The services themselves may not do that.
    """
    from kmmhub.streams import run_once, run_watch
    from shared.bus.server_configuration import users_file

    if print_users in {"password", "nkey"}:
        typer.echo(users_file("password" if print_users == "password" else "nkey"), nl=False)
        return
    if print_users is not None:
        raise typer.BadParameter("--print-users takes password or nkey")
    if watch:
        raise typer.Exit(run_watch())
    typer.echo(run_once(as_json=output is dev.Output.json))


@app.command()
def nkey(
    file: Annotated[Path, typer.Argument(help="Where to write the seed, which is the secret.")],
) -> None:
    """Make a key for a user of NATS: the secret into a new file, the public key on standard output."""
    from shared.bus.nkey import write_nkey

    typer.echo(write_nkey(file).public)


@app.command()
def install(
    namespace: Annotated[
        str, typer.Option(envvar="OPERATOR_NAMESPACE", help="The operator's namespace.")
    ] = "kmm-operator-system",
) -> None:
    """Apply CRDs and the operator's namespace to the hub that KUBECONFIG names."""
    from kmmhub.install import install_hub

    for line in install_hub(None, namespace):
        typer.echo(f"applied {line}")


@app.command()
def status(
    database_url: Annotated[
        str, typer.Option(envvar="DATABASE_URL", help="postgresql://…", show_default=False)
    ],
    module: Annotated[str | None, typer.Argument(help="One module; all of them without it.")] = None,
    namespace: Annotated[
        str, typer.Option(envvar="OPERATOR_NAMESPACE", help="The operator's namespace.")
    ] = "kmm-operator-system",
    output: Annotated[dev.Output, typer.Option("--output", "-o", help="How to print.")] = dev.Output.text,
) -> None:
    """Show where modules stand, per cluster and per kernel. Ends with 1 unless all are Ready."""
    from kmmhub.status import show_status

    raise typer.Exit(
        show_status(module, database_url=database_url, namespace=namespace, as_json=output is dev.Output.json)
    )


@app.command()
def retry(
    module: Annotated[str, typer.Argument(help="The ManagedClusterModule.")],
    database_url: Annotated[
        str, typer.Option(envvar="DATABASE_URL", help="postgresql://…", show_default=False)
    ],
    output: Annotated[dev.Output, typer.Option("--output", "-o", help="How to print.")] = dev.Output.text,
) -> None:
    """Let the failed images of a module be tried again."""
    from kmmhub.retry import retry as retry_failed

    keys = retry_failed(module, database_url=database_url)
    typer.echo(
        json.dumps({"artifacts": keys})
        if output is dev.Output.json
        else f"{len(keys)} images are tried again"
    )


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running at the end.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Take down what --keep left running.")] = False,
) -> None:
    """Tell the whole story on real parts: six clusters, real kernels, real signatures."""
    from demo.run import run_demo, stop_demo

    if stop:
        stop_demo()
        return
    raise typer.Exit(run_demo(keep=keep))


def main() -> None:
    """The `kmmhub` command. Errors of ours end with their message and status 1."""
    try:
        app()
    except HubError as error:
        typer.echo(f"kmmhub: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
