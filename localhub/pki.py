"""The certificate authority of a local hub: the API server's certificate and those of its clients."""

import ipaddress
import shutil
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from localhub.files import write_private
from shared.runtime.clock import now

VALID_FOR = timedelta(days=3650)
SERVER_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")


def ensure_authority(directory: Path) -> None:
    """Make the authority, the API server's certificate and the key of service accounts, unless they are there.

    Afterwards the directory holds `ca.crt`, `ca.key`, `apiserver.crt`, `apiserver.key`, `admin.crt`, `admin.key`,
    `service-account.key` and `service-account.pub`, all PEM.
    """
    if directory.exists():
        return
    fresh = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    _make_authority(fresh)
    server, server_key = _issue(fresh, "kube-apiserver", (), ExtendedKeyUsageOID.SERVER_AUTH)
    write_private(fresh / "apiserver.crt", server)
    write_private(fresh / "apiserver.key", server_key)
    admin, admin_key = issue_client_certificate(fresh, user="admin", groups=("system:masters",))
    write_private(fresh / "admin.crt", admin)
    write_private(fresh / "admin.key", admin_key)
    accounts = ec.generate_private_key(ec.SECP256R1())
    write_private(fresh / "service-account.key", _key_text(accounts))
    write_private(fresh / "service-account.pub", _public_text(accounts))
    fresh.rename(directory)


def issue_client_certificate(directory: Path, *, user: str, groups: tuple[str, ...]) -> tuple[str, str]:
    """A client certificate for the API server.

    Args:
        directory: the authority's directory.
        user: user name as RBAC sees it (the certificate's common name).
        groups: groups as RBAC sees them (its organizations).

    Returns:
        Certificate and private key, PEM.
    """
    return _issue(directory, user, groups, ExtendedKeyUsageOID.CLIENT_AUTH)


def _make_authority(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kmmhub local hub")])
    public = key.public_key()
    certificate = (
        _builder(name, name, public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(directory / "ca.key", _key_text(key))
    write_private(directory / "ca.crt", _certificate_text(certificate))


def _issue(
    directory: Path, name: str, groups: tuple[str, ...], usage: x509.ObjectIdentifier
) -> tuple[str, str]:
    authority = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
    authority_key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, name))
    builder = (
        _builder(x509.Name(attributes), authority.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        # Python 3.13 refuses a certificate without it (VERIFY_X509_STRICT, RFC 5280 4.2.1.1).
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
    )
    if usage == ExtendedKeyUsageOID.SERVER_AUTH:
        names: list[x509.GeneralName] = [x509.DNSName(host) for host in SERVER_NAMES]
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return _certificate_text(builder.sign(authority_key, hashes.SHA256())), _key_text(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    today = now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(hours=1))
        .not_valid_after(today + VALID_FOR)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _certificate_text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_text(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def _public_text(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()
