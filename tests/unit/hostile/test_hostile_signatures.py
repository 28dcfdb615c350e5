"""Modules whose end is a signature, or looks like one: read, or refused with a reason, in bounded time."""

import contextlib
import datetime as dt
import struct
import time

import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from hostile_budget import budget
from hypothesis import given
from hypothesis import strategies as st

from services.signer.module_signature import (
    MAGIC,
    ModuleMalformed,
    SigningKeyInvalid,
    is_signed_by,
    load_certificate,
    load_private_key,
    read_signature,
    sign_module,
    strip_signatures,
)

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
MODULE = b"\x7fELF" + b"module" * 20


def certificate() -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "k" * 40)])
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEY.public_key())
    builder = builder.serial_number(7).not_valid_before(start)
    return builder.not_valid_after(start + dt.timedelta(days=9999)).sign(KEY, hashes.SHA256())


CERTIFICATE = certificate()
SIGNED = sign_module(MODULE, KEY, CERTIFICATE)


def judged(content: bytes) -> bool:
    """Every function over a module; only ModuleMalformed may come out of them."""
    for judge in (read_signature, strip_signatures):
        with contextlib.suppress(ModuleMalformed):
            judge(content)
    return is_signed_by(content, CERTIFICATE)


def trailer(length: int, *, kind: int = 2) -> bytes:
    return struct.pack(">BBBBB3xI", 0, 0, kind, 0, 0, length) + MAGIC


@budget(400)
@given(
    place=st.integers(0, len(SIGNED) - 1), noise=st.binary(min_size=1, max_size=8), is_inserted=st.booleans()
)
def test_a_changed_module_never_counts_as_signed(place: int, noise: bytes, is_inserted: bool) -> None:
    content = SIGNED[:place] + noise + SIGNED[place + (0 if is_inserted else len(noise)) :]
    # Appended or swapped bytes may hit padding that is not signed, never the module itself.
    if judged(content):
        assert content == SIGNED or place >= len(MODULE)


@budget(100)
@given(st.integers(0, len(SIGNED)))
def test_a_truncated_module_is_not_signed(length: int) -> None:
    assert judged(SIGNED[:length]) is (length == len(SIGNED))


@budget(400)
@given(der=st.binary(max_size=80), length=st.none() | st.integers(0, 2**32 - 1), kind=st.integers(0, 255))
def test_any_end_of_a_file_is_judged(der: bytes, length: int | None, kind: int) -> None:
    assert not judged(MODULE + der + trailer(len(der) if length is None else length, kind=kind))
    assert not judged(der)


def test_very_many_signatures_are_stripped_in_linear_time() -> None:
    content = MODULE + trailer(0) * 400_000
    started = time.process_time()
    assert strip_signatures(content) == MODULE
    assert time.process_time() - started < 5


OIDS = st.sampled_from(
    [
        "2.5.4.3",
        "2.5.4.6",
        "2.5.4.45",
        "1.2.840.113549.1.9.1",
        "1.2.3",
        "2.5.4.46",
        "0.9.2342.19200300.100.1.25",
    ]
)


@budget(300)
@given(
    kind=OIDS, tag=st.sampled_from([0x03, 0x04, 0x0C, 0x13, 0x16, 0x1E, 0x30]), start=st.binary(max_size=6)
)
def test_any_issuer_in_a_signature_is_judged(kind: str, tag: int, start: bytes) -> None:
    """The issuer's one attribute gets another type and value, of a length that keeps all other lengths right."""
    signature = read_signature(SIGNED)
    assert signature is not None
    issuer = CERTIFICATE.issuer.public_bytes()
    oid = asn1.encode_der(x509.ObjectIdentifier(kind))
    room = len(issuer) - 2 * 3 - len(oid) - 2
    attribute = oid + bytes([tag, room]) + start.ljust(room, b"a")
    other = bytes([0x30, len(issuer) - 2, 0x31, len(issuer) - 4, 0x30, len(issuer) - 6]) + attribute
    assert len(other) == len(issuer)
    content = SIGNED[: signature.start] + SIGNED[signature.start :].replace(issuer, other)
    assert content != SIGNED or other == issuer
    assert judged(content) is (other == issuer)


@budget(200)
@given(st.binary(max_size=60) | st.text(max_size=20).map(lambda text: f"-----BEGIN {text}".encode()))
def test_a_key_or_certificate_of_any_bytes_has_a_reason(data: bytes) -> None:
    for load in (load_certificate, load_private_key):
        with pytest.raises(SigningKeyInvalid, match=r"sign\.(cert|key)Secret"):
            load(data)
