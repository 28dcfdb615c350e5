"""The users of the bus in the words of nats-server's configuration. JSON is a subset of its language."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from shared.bus.permissions import Identity, permissions


@dataclass(frozen=True, slots=True, kw_only=True)
class Password:
    """A user proves who it is by a password, clear or as a bcrypt hash."""

    password: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A user proves who it is by signing with the private half of this nkey, `U…`."""

    nkey: str


Proof: TypeAlias = "Password | PublicKey"


_HEAD = {
    "password": "The users of kmm-hub, each with a password: letters and digits, a letter first.",
    "nkey": "The users of kmm-hub, each with the public half of an nkey, as `kmmhub nkey FILE` prints it.",
}


def authorization(proofs: Mapping[Identity, Proof]) -> dict[str, Any]:
    """The block `authorization`: each user with its proof and its permissions. Strangers are refused."""
    return {"users": [_user(identity, proof) for identity, proof in proofs.items()]}


def _user(identity: Identity, proof: Proof) -> dict[str, Any]:
    allowed = permissions(identity)
    name = (
        {"user": str(identity), "password": proof.password}
        if isinstance(proof, Password)
        else {"nkey": proof.nkey}
    )
    return {
        **name,
        "permissions": {
            "publish": {"allow": list(allowed.publish)},
            "subscribe": {"allow": list(allowed.subscribe)},
        },
    }


def users_file(proof: Literal["password", "nkey"]) -> str:
    """A file for `include` in nats-server's configuration, whose secrets the server reads from its environment.

    Each user's password is `$NATS_PASSWORD_<NAME>`, or its public nkey `$NATS_NKEY_<NAME>`.
    """
    variables = {identity: f"$NATS_{proof.upper()}_{identity.upper()}" for identity in Identity}
    kind = Password if proof == "password" else PublicKey
    proofs: dict[Identity, Proof] = {
        identity: kind(**{proof: variable}) for identity, variable in variables.items()
    }
    text = json.dumps({"authorization": authorization(proofs)}, indent=2)
    # A variable is one only where it stands without quotation marks; the outermost braces are the including file's.
    for variable in variables.values():
        text = text.replace(f'"{variable}"', variable)
    lines = [line.removeprefix("  ") for line in text.splitlines()[1:-1]]
    return "\n".join((f"# {_HEAD[proof]}", "# Written by `kmmhub streams --print-users`.", *lines, ""))
