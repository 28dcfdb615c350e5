"""The certificate is read again when its files change, and a bad one never replaces a good one."""

import datetime as dt
import shutil
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from localhub.pki import ensure_authority
from services.admission.certificate import Certificate, NoCertificate
from shared.runtime.clock import now


def put(pki: Path, directory: Path, certificate: str = "apiserver", key: str = "apiserver") -> Path:
    """A directory with the certificate and key of an authority, which is made if need be."""
    ensure_authority(pki)
    directory.mkdir(exist_ok=True)
    shutil.copy(pki / f"{certificate}.crt", directory / "tls.crt")
    shutil.copy(pki / f"{key}.key", directory / "tls.key")
    return directory


def put_self_signed(directory: Path, *, starts_in: dt.timedelta, ends_in: dt.timedelta) -> Path:
    """A directory with a certificate of an RSA key that signs itself."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "webhook")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(now() + starts_in).not_valid_after(now() + ends_in)
    directory.mkdir(exist_ok=True)
    pem = serialization.Encoding.PEM
    (directory / "tls.crt").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem))
    (directory / "tls.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return directory


def served(certificate: Certificate) -> bytes:
    """The certificate, DER, that a new connection is shown."""
    client_context = ssl.create_default_context()
    client_context.check_hostname, client_context.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = certificate.context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    shown = client.getpeercert(binary_form=True)
    assert shown
    return shown


def stored(directory: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert((directory / "tls.crt").read_text())


def test_a_new_connection_gets_the_newest_certificate(tmp_path: Path) -> None:
    directory = put(tmp_path / "pki", tmp_path / "tls")
    certificate = Certificate(directory)
    first = stored(directory)
    assert served(certificate) == first
    assert certificate.is_valid
    assert not certificate.refresh()

    put(tmp_path / "another", directory)
    assert served(certificate) == first
    assert certificate.refresh()

    assert served(certificate) == stored(directory) != first
    assert not certificate.refresh()
    # A key of another kind replaces it as well: OpenSSL would keep one certificate for each kind.
    put_self_signed(directory, starts_in=dt.timedelta(days=-1), ends_in=dt.timedelta(days=1))
    assert certificate.refresh()
    assert served(certificate) == stored(directory)


@pytest.mark.parametrize("part", ["tls.crt", "tls.key"])
@pytest.mark.parametrize("how", ["missing", "empty", "text", "of another"])
def test_a_bad_file_is_named_and_the_good_one_stays(tmp_path: Path, part: str, how: str) -> None:
    directory = put(tmp_path / "pki", tmp_path / "tls")
    certificate = Certificate(directory)
    good = stored(directory)
    if how == "missing":
        (directory / part).unlink()
    elif how == "of another":
        shutil.copy(put(tmp_path / "another", tmp_path / "other") / part, directory / part)
    else:
        (directory / part).write_text("" if how == "empty" else "no certificate")

    with pytest.raises(NoCertificate, match=r"tls\.crt and .*tls\.key cannot be used"):
        certificate.refresh()
    with pytest.raises(NoCertificate):
        Certificate(directory)

    assert served(certificate) == good
    put(tmp_path / "third", directory)
    assert certificate.refresh()


def test_an_encrypted_key_asks_nobody(tmp_path: Path) -> None:
    directory = put(tmp_path / "pki", tmp_path / "tls")
    key = serialization.load_pem_private_key((directory / "tls.key").read_bytes(), password=None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    (directory / "tls.key").write_bytes(encrypted)

    with pytest.raises(NoCertificate, match="unencrypted key"):
        Certificate(directory)


@pytest.mark.parametrize(("starts_in", "ends_in"), [(-2, -1), (1, 2)])
def test_a_certificate_whose_time_is_not_now_is_not_ready(
    tmp_path: Path, starts_in: int, ends_in: int
) -> None:
    day = dt.timedelta(days=1)
    directory = put_self_signed(tmp_path / "tls", starts_in=starts_in * day, ends_in=ends_in * day)

    assert not Certificate(directory).is_valid
