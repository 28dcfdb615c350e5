"""A module-signing key and its certificate, made on the spot. Nothing is ever stored with the code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

KEY_BITS = 2048
"""The size that UEFI firmware is required to understand (UEFI 2.10, section 32.4)."""

VALIDITY = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A private key and its self-signed certificate.

    Attributes:
        key: the private key, PEM, PKCS#8, unencrypted. Kept out of `repr`.
        certificate: the certificate, PEM.
    """

    key: bytes = field(repr=False)
    certificate: bytes

    def key_secret(self) -> Mapping[str, bytes]:
        """Return the data of the Secret that a ManagedClusterModule's `sign.keySecret` names."""
        return {"key": self.key}

    def certificate_secret(self) -> Mapping[str, bytes]:
        """Return the data of the Secret that a ManagedClusterModule's `sign.certSecret` names."""
        return {"cert": self.certificate}


def new_signing_key(common_name: str, *, now: datetime) -> SigningKey:
    """Make a key whose certificate a kernel accepts for modules.

    The certificate is no authority and may only sign (`CA:false`, `digitalSignature`), as the kernel's own
    `certs/default_x509.genkey` asks; the kernel finds it by its SubjectKeyIdentifier or issuer and serial.

    Args:
        common_name: the subject, as the kernel prints it when it loads the certificate.
        now: the present time, with a time zone; the certificate is valid from one day before it.

    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_only_digital_signature(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    return SigningKey(
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate=certificate.public_bytes(Encoding.PEM),
    )


def _only_digital_signature() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
