"""The certificates of a local hub."""

import stat
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from localhub.pki import ensure_authority, issue_client_certificate


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_certificates_verify_and_are_made_once(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    ensure_authority(pki)
    store = Store([load(pki / "ca.crt")])
    server = PolicyBuilder().store(store).build_server_verifier(x509.DNSName("localhost"))
    server.verify(load(pki / "apiserver.crt"), [])
    before = (pki / "ca.crt").read_bytes()
    ensure_authority(pki)
    assert (pki / "ca.crt").read_bytes() == before


def test_keys_are_for_the_owner_only(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    ensure_authority(pki)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in pki.iterdir())


def test_client_certificate_names_user_and_groups(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    ensure_authority(pki)
    text, _ = issue_client_certificate(pki, user="agent", groups=("fleet", "cluster1"))
    certificate = x509.load_pem_x509_certificate(text.encode())
    names = {
        oid: [attribute.value for attribute in certificate.subject.get_attributes_for_oid(oid)]
        for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
    }
    assert names == {NameOID.COMMON_NAME: ["agent"], NameOID.ORGANIZATION_NAME: ["fleet", "cluster1"]}
    certificate.verify_directly_issued_by(load(pki / "ca.crt"))
