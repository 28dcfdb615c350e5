"""User keys of NATS (nkeys): a private seed that never leaves its owner, and a public key that the server knows.

The text form is that of github.com/nats-io/nkeys: prefix, key and CRC-16 in base32 without padding.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.domain.errors import PermanentError

_SEED, _USER = 18 << 3, 20 << 3
_SEED_OF_USER = bytes([_SEED | _USER >> 5, (_USER & 31) << 3])
_KEY_BYTES = 32


class InvalidNkey(PermanentError):
    """A file holds no seed of a user's key."""

    reason = "InvalidNkey"


@dataclass(frozen=True, slots=True)
class Nkey:
    """A key pair of a user. Its `repr` shows the public key alone."""

    _private: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"Nkey({self.public})"

    @classmethod
    def generate(cls) -> Nkey:
        """A new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, text: str) -> Nkey:
        """Read a seed, `SU…`.

        Raises:
            InvalidNkey: it is none; the message does not repeat it.
        """
        seed = text.strip()
        try:
            raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
        except (binascii.Error, ValueError):
            raw = b""
        body, checksum = raw[:-2], raw[-2:]
        key = body.removeprefix(_SEED_OF_USER)
        if len(body) != len(_SEED_OF_USER) + _KEY_BYTES or len(key) != _KEY_BYTES or _crc(body) != checksum:
            raise InvalidNkey(
                "this is no seed of a NATS user, which begins with SU: make one with `kmmhub nkey`"
            )
        return cls(Ed25519PrivateKey.from_private_bytes(key))

    @property
    def seed(self) -> str:
        """The secret in its text form, `SU…`."""
        return _text(_SEED_OF_USER + self._private.private_bytes_raw())

    @property
    def public(self) -> str:
        """What the server knows of it, `U…`."""
        return _text(bytes([_USER]) + self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, nonce: str) -> bytes:
        """The answer to a server's challenge, in base64 without padding (RFC 4648, section 5)."""
        return base64.urlsafe_b64encode(self._private.sign(nonce.encode())).rstrip(b"=")


def read_nkey(path: Path) -> Nkey:
    """Read a seed from a file.

    Raises:
        InvalidNkey: the file cannot be read, or holds no seed.
    """
    try:
        return Nkey.from_seed(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidNkey(f"NATS_NKEY_SEED names {path}, which cannot be read: {error}") from error
    except InvalidNkey as error:
        raise InvalidNkey(f"NATS_NKEY_SEED names {path}: {error}") from None


def write_nkey(path: Path) -> Nkey:
    """Make a key and write its seed to a new file that only its owner can read.

    Raises:
        InvalidNkey: the file exists already, or cannot be written.
    """
    key = Nkey.generate()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{key.seed}\n")
    except OSError as error:
        raise InvalidNkey(f"{path} cannot be written: {error}; a seed is never overwritten") from error
    return key


def _crc(data: bytes) -> bytes:
    return binascii.crc_hqx(data, 0).to_bytes(2, "little")


def _text(body: bytes) -> str:
    return base64.b32encode(body + _crc(body)).rstrip(b"=").decode()
