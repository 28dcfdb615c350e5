"""Handing each service its own credentials, from one environment that holds those of all.

`NATS_URL_BUILDER` is the builder's `NATS_URL`, and so on. A service gets its own under the plain name, or the plain one
that all share, and nobody else's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import unquote, urlsplit

from shared.bus.permissions import Identity
from shared.domain.errors import PermanentError
from shared.runtime.settings import InvalidSettings
from shared.store.roles import ROLES, role_name

BUS_VARIABLES = ("NATS_URL", "NATS_NKEY_SEED")
VARIABLES = (*BUS_VARIABLES, "DATABASE_URL")
NAMES = tuple(dict.fromkeys((*map(str, Identity), *ROLES)))


def service_variable(variable: str, service: str) -> str:
    """The variable that holds one service's own `NATS_URL`, `NATS_NKEY_SEED` or `DATABASE_URL`."""
    return f"{variable}_{service.upper()}"


def service_environment(service: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of one service, made from one for all.

    Whoever has an address or a seed of its own on the bus does not get the shared seed, which is another user's.

    Raises:
        InvalidSettings: an address is missing.
    """
    others = {service_variable(variable, name) for variable in VARIABLES for name in NAMES}
    own = {
        variable: environment[service_variable(variable, service)]
        for variable in VARIABLES
        if service_variable(variable, service) in environment
    }
    shared = {name: value for name, value in environment.items() if name not in others}
    if own.keys() & set(BUS_VARIABLES):
        shared.pop("NATS_NKEY_SEED", None)
    if service == Identity.STREAMS:
        shared.pop("DATABASE_URL", None)
    result = shared | own
    _require(("NATS_URL",) if service == Identity.STREAMS else ("NATS_URL", "DATABASE_URL"), service, result)
    return result


def role_passwords(environment: Mapping[str, str]) -> dict[str, str]:
    """The passwords of roles, from the addresses that will use them.

    Returns:
        Password by service, of each service with a `DATABASE_URL_<SERVICE>`.

    Raises:
        PermanentError: there is none, or one names another role or no password.
    """
    passwords: dict[str, str] = {}
    for service in ROLES:
        variable = service_variable("DATABASE_URL", service)
        if variable not in environment:
            continue
        parts = urlsplit(environment[variable])
        if parts.username != role_name(service) or not parts.password:
            message = f"{variable} must be like postgresql://{role_name(service)}:password@host:port/database"
            raise PermanentError(message, reason="InvalidSettings")
        passwords[service] = unquote(parts.password)
    if not passwords:
        names = ", ".join(service_variable("DATABASE_URL", service) for service in ROLES)
        message = f"no role to create: its address, with user and password, is read from {names}"
        raise PermanentError(message, reason="InvalidSettings")
    return passwords


def _require(variables: Collection[str], service: str, environment: Mapping[str, str]) -> None:
    missing = [name for name in variables if not environment.get(name)]
    if missing:
        problems = "; ".join(f"{name}, or {service_variable(name, service)}: missing" for name in missing)
        raise InvalidSettings(
            f'the environment cannot be used: {problems}. For the local hub: eval "$(kmmhub dev env)"'
        )
