"""The users of the bus in the words of nats-server's configuration. JSON is a subset of its language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

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
