"""Module signatures. The real kernel's tools judge them in tests/integration/test_sign_image.py; here are the edges."""

import datetime as dt
import struct
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from services.signer.module_signature import (
    MAGIC,
    ModuleMalformed,
    SigningKeyInvalid,
    check_key_matches,
    fingerprint,
    is_signed_by,
    load_certificate,
    load_private_key,
    read_signature,
    sign_module,
    strip_signatures,
)

MODULE = b"\x7fELF" + bytes(range(256)) * 8


def _certificate(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, name: str = "our key"
) -> x509.Certificate:
    subject = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Prüfstelle"),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, name),
        ]
    )
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    )
    builder = (
        builder.serial_number(2**150 + 7)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=9))
    )
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return builder.add_extension(key_id, critical=False).sign(key, hashes.SHA256())


KEY, OTHER = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 2048)
CERTIFICATE, FOREIGN = _certificate(KEY), _certificate(OTHER)
SIGNED = sign_module(MODULE, KEY, CERTIFICATE)


def _appended(
    module: bytes, cms: bytes, *, fields: tuple[int, int, int, int, int] = (0, 0, 2, 0, 0)
) -> bytes:
    return module + cms + struct.pack(">BBBBB3xI", *fields, len(cms)) + MAGIC


class TestSigning:
    def test_what_is_signed_reads_back(self):
        found = read_signature(SIGNED)
        assert found is not None
        assert (found.start, found.digest_algorithm) == (len(MODULE), "sha256")
        assert (found.issuer, found.serial) == (CERTIFICATE.issuer, 2**150 + 7)
        assert is_signed_by(SIGNED, CERTIFICATE)

    def test_signing_again_replaces_every_signature(self):
        twice = SIGNED + sign_module(MODULE, OTHER, FOREIGN)[len(MODULE) :]
        assert strip_signatures(twice) == MODULE
        assert sign_module(twice, KEY, CERTIFICATE) == SIGNED

    def test_an_unsigned_module(self):
        assert read_signature(MODULE) is None
        assert strip_signatures(MODULE) == MODULE
        assert not is_signed_by(MODULE, CERTIFICATE)

    def test_the_same_names_with_another_key_do_not_verify(self):
        assert (CERTIFICATE.issuer, CERTIFICATE.serial_number) == (FOREIGN.issuer, FOREIGN.serial_number)
        assert not is_signed_by(SIGNED, FOREIGN)

    def test_the_same_key_under_another_name_is_not_the_signer(self):
        assert not is_signed_by(SIGNED, _certificate(KEY, "another name"))

    @settings(max_examples=200, deadline=None)
    @given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
    def test_no_changed_byte_of_module_or_signature_verifies(self, position: int, change: int):
        damaged = bytearray(SIGNED)
        damaged[position] ^= change
        # The three padding bytes of the trailer mean nothing; CMS has no byte without a meaning to us but versions
        # and the parameters of algorithms, which a kernel skips as well.
        cms = SIGNED[len(MODULE) : -len(MAGIC) - 12]
        if (
            position < len(MODULE)
            or position >= len(SIGNED) - len(MAGIC)
            or position >= len(MODULE) + len(cms) - 256
        ):
            padding = range(len(SIGNED) - len(MAGIC) - 7, len(SIGNED) - len(MAGIC) - 4)
            assert is_signed_by(bytes(damaged), CERTIFICATE) == (position in padding)

    @pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", MAGIC, b"\x00" * 64])
    def test_what_is_no_module_is_refused(self, content):
        with pytest.raises(ModuleMalformed):
            sign_module(content, KEY, CERTIFICATE)

    @pytest.mark.parametrize(
        "content",
        [
            MODULE[:8] + MAGIC,
            MODULE + struct.pack(">BBBBB3xI", 0, 0, 2, 0, 0, 2**31) + MAGIC,
            _appended(MODULE, b"old style", fields=(1, 4, 1, 20, 20)),
        ],
        ids=["no trailer", "longer than the file", "kind before Linux 4.3"],
    )
    def test_broken_trailers_are_refused_and_not_taken_for_signatures(self, content):
        with pytest.raises(ModuleMalformed):
            sign_module(content, KEY, CERTIFICATE)
        assert not is_signed_by(content, CERTIFICATE)

    def test_a_signature_that_is_no_cms_is_replaced(self):
        broken = _appended(MODULE, b"\x30\x03abc")
        with pytest.raises(ModuleMalformed):
            read_signature(broken)
        assert not is_signed_by(broken, CERTIFICATE)
        assert sign_module(broken, KEY, CERTIFICATE) == SIGNED


class TestSignaturesOfOpenssl:
    @pytest.mark.parametrize(
        ("options", "accepted", "named"),
        [
            (["-noattr", "-nocerts"], True, True),
            (["-noattr"], True, True),
            (["-noattr", "-nocerts", "-md", "sha512"], True, True),
            (["-noattr", "-nocerts", "-md", "sha1"], False, True),
            (["-nocerts"], False, True),
            (["-noattr", "-keyid"], False, False),
        ],
    )
    def test_which_are_accepted(self, tmp_path: Path, options: list[str], accepted: bool, named: bool):
        (tmp_path / "module").write_bytes(MODULE)
        (tmp_path / "certificate").write_bytes(CERTIFICATE.public_bytes(Encoding.PEM))
        (tmp_path / "key").write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        command = [
            "openssl",
            "cms",
            "-sign",
            "-binary",
            "-outform",
            "DER",
            "-in",
            "module",
            "-signer",
            "certificate",
        ]
        command += ["-inkey", "key", "-out", "cms", *options]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=20)
        signed = _appended(MODULE, (tmp_path / "cms").read_bytes())
        found = read_signature(signed)
        assert found is not None
        assert found.issuer == (CERTIFICATE.issuer if named else None)
        assert is_signed_by(signed, CERTIFICATE) == accepted
        assert sign_module(signed, KEY, CERTIFICATE) == SIGNED


class TestLoading:
    @pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
    def test_certificates_in_both_forms(self, encoding):
        assert load_certificate(CERTIFICATE.public_bytes(encoding)) == CERTIFICATE

    @pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
    @pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
    def test_keys_in_all_forms(self, encoding, form):
        loaded = load_private_key(KEY.private_bytes(encoding, form, NoEncryption()))
        assert loaded.private_numbers() == KEY.private_numbers()

    @pytest.mark.parametrize("data", [b"", b"-----BEGIN CERTIFICATE-----\nhunter2", b"hunter2"])
    def test_what_is_neither_is_named_by_its_field_and_not_quoted(self, data):
        with pytest.raises(SigningKeyInvalid, match=r"`cert` .*certSecret"):
            load_certificate(data)
        with pytest.raises(SigningKeyInvalid, match=r"`key` .*keySecret") as caught:
            load_private_key(data)
        assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"

    def test_swapped_fields(self):
        pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with pytest.raises(SigningKeyInvalid, match="cert"):
            load_certificate(pem)
        with pytest.raises(SigningKeyInvalid, match="key"):
            load_private_key(CERTIFICATE.public_bytes(Encoding.PEM))

    @pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
    def test_a_key_with_a_passphrase_is_refused(self, encoding):
        data = KEY.private_bytes(encoding, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
        with pytest.raises(SigningKeyInvalid, match="passphrase"):
            load_private_key(data)

    def test_other_kinds_and_short_keys_are_refused(self):
        curve = ec.generate_private_key(ec.SECP256R1())
        for data in (
            curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            rsa.generate_private_key(65537, 1024).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
            ),
        ):
            with pytest.raises(SigningKeyInvalid, match="RSA"):
                load_private_key(data)
        with pytest.raises(SigningKeyInvalid, match="RSA"):
            load_certificate(_certificate(curve).public_bytes(Encoding.DER))

    def test_a_pair_belongs_together(self):
        assert check_key_matches(KEY, CERTIFICATE) is None
        with pytest.raises(SigningKeyInvalid, match=r"keySecret.*certSecret.*our key"):
            check_key_matches(OTHER, CERTIFICATE)

    def test_the_fingerprint_is_openssls(self, tmp_path: Path):
        (tmp_path / "pem").write_bytes(CERTIFICATE.public_bytes(Encoding.PEM))
        command = ["openssl", "x509", "-in", str(tmp_path / "pem"), "-noout", "-fingerprint", "-sha256"]
        shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
        assert fingerprint(CERTIFICATE) == shown.strip().partition("=")[2].replace(":", "").lower()
