from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from demo.signing_key import new_signing_key

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_the_certificate_belongs_to_the_key_and_may_only_sign() -> None:
    made = new_signing_key("Fleet modules", now=NOW)
    certificate = x509.load_pem_x509_certificate(made.certificate_secret()["cert"])
    key = load_pem_private_key(made.key_secret()["key"], password=None)
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert certificate.public_key().public_bytes(*spki) == key.public_key().public_bytes(*spki)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert certificate.not_valid_before_utc == NOW - timedelta(days=1)
    assert certificate.not_valid_after_utc > NOW
    certificate.verify_directly_issued_by(certificate)


def test_keys_are_new_each_time_and_never_shown() -> None:
    first, second = new_signing_key("a", now=NOW), new_signing_key("a", now=NOW)
    assert first.key != second.key
    assert "PRIVATE" not in repr(first)
