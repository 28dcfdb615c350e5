"""Signatures of kernel modules: made, read, removed and verified as the kernel does. Pure.

A signed module is the ELF file, a detached CMS signature over all bytes before it, the 12 bytes of
`struct module_signature` and a magic line (Linux `include/linux/module_signature.h`, `scripts/sign-file.c`,
`kernel/module/signing.c`).
"""

import struct
from dataclasses import dataclass
from typing import Annotated, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
    pkcs7,
)

from shared.domain.errors import PermanentError

MAGIC: Final = b"~Module signature appended~\n"
"""The last bytes of a signed module."""

# Algorithm, hash, id type, lengths of signer name, key id and signature.
_TRAILER: Final = struct.Struct(">BBBBB3xI")
_PKCS7_ID: Final = 2  # PKEY_ID_PKCS7: the only kind the kernel accepts
_ELF: Final = b"\x7fELF"
_PEM: Final = b"-----BEGIN"
_MINIMUM_BITS: Final = 2048

_DIGESTS: Final[dict[str, hashes.HashAlgorithm]] = {
    "2.16.840.1.101.3.4.2.1": hashes.SHA256(),
    "2.16.840.1.101.3.4.2.2": hashes.SHA384(),
    "2.16.840.1.101.3.4.2.3": hashes.SHA512(),
}
_RSA_SIGNATURES: Final = {  # rsaEncryption, and RSA with SHA-256, SHA-384, SHA-512 (RFC 4055)
    "1.2.840.113549.1.1.1",
    "1.2.840.113549.1.1.11",
    "1.2.840.113549.1.1.12",
    "1.2.840.113549.1.1.13",
}


class ModuleMalformed(PermanentError):
    """A file to sign is no kernel module, or the signature at its end cannot be read."""

    reason = "ModuleMalformed"


class SigningKeyInvalid(PermanentError):
    """A Secret for signing holds no usable key or certificate; the message names the field."""

    reason = "SigningKeyInvalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSignature:
    """What the outermost signature of a module says; nothing in it has been verified.

    Attributes:
        start: offset in bytes where the signature starts; what is signed is all before it.
        issuer: issuer of the signer's certificate, None where the signature names a key identifier instead.
        serial: serial number of the signer's certificate, None as above.
        digest_algorithm: name such as `sha256`, or the dotted object identifier of one the hub does not know.
    """

    start: int
    issuer: x509.Name | None
    serial: int | None
    digest_algorithm: str


@asn1.sequence
class _Algorithm:
    algorithm: x509.ObjectIdentifier
    parameters: asn1.Null | None


@asn1.sequence
class _NameAttribute:
    kind: x509.ObjectIdentifier
    value: asn1.TLV


@asn1.sequence
class _IssuerAndSerial:
    issuer: list[asn1.SetOf[_NameAttribute]]
    serial: int


@asn1.sequence
class _Content:
    kind: x509.ObjectIdentifier
    content: Annotated[bytes | None, asn1.Explicit(0)]


@asn1.sequence
class _Signer:
    version: int
    identity: _IssuerAndSerial | Annotated[bytes, asn1.Implicit(0)]
    digest: _Algorithm
    signed_attributes: Annotated[asn1.SetOf[asn1.TLV] | None, asn1.Implicit(0)]
    algorithm: _Algorithm
    signature: bytes
    unsigned_attributes: Annotated[asn1.SetOf[asn1.TLV] | None, asn1.Implicit(1)]


@asn1.sequence
class _SignedData:
    version: int
    digests: asn1.SetOf[_Algorithm]
    content: _Content
    certificates: Annotated[asn1.SetOf[asn1.TLV] | None, asn1.Implicit(0)]
    revocations: Annotated[asn1.SetOf[asn1.TLV] | None, asn1.Implicit(1)]
    signers: asn1.SetOf[_Signer]


@asn1.sequence
class _Cms:
    """ContentInfo with SignedData (RFC 5652, sections 3 and 5)."""

    kind: x509.ObjectIdentifier
    content: Annotated[_SignedData, asn1.Explicit(0)]


def sign_module(content: bytes, key: rsa.RSAPrivateKey, certificate: x509.Certificate) -> bytes:
    """Signed form of a module: signatures it has are removed, one is appended, as `sign-file sha256` would.

    Args:
        content: an uncompressed module, signed or not.
        key: private key of the certificate.
        certificate: certificate that the kernels trust.

    Raises:
        ModuleMalformed: the content is no ELF file, or ends in a broken signature.
    """
    if not content.startswith(_ELF):
        raise ModuleMalformed("It is no kernel module: it does not start as an ELF file. List modules only.")
    bare = strip_signatures(content)
    signature = (
        pkcs7.PKCS7SignatureBuilder()
        .set_data(bare)
        .add_signer(certificate, key, hashes.SHA256(), rsa_padding=padding.PKCS1v15())
        .sign(
            Encoding.DER,
            [
                pkcs7.PKCS7Options.DetachedSignature,
                pkcs7.PKCS7Options.Binary,
                pkcs7.PKCS7Options.NoAttributes,
                pkcs7.PKCS7Options.NoCerts,
            ],
        )
    )
    return bare + signature + _TRAILER.pack(0, 0, _PKCS7_ID, 0, 0, len(signature)) + MAGIC


def strip_signatures(content: bytes) -> bytes:
    """The module without any of the signatures appended to it.

    Raises:
        ModuleMalformed: a signature's length is impossible, or it is of a kind other than PKCS#7.
    """
    end = len(content)
    while (start := _signature_start(content, end)) is not None:
        end = start
    return content[:end]


def read_signature(content: bytes) -> ModuleSignature | None:
    """What the outermost signature says about its signer; None if the module has no signature.

    Raises:
        ModuleMalformed: the end of the file or the CMS structure in it cannot be read.
    """
    start = _signature_start(content, len(content))
    if start is None:
        return None
    signer = _read_signer(content, start)
    identity = signer.identity if isinstance(signer.identity, _IssuerAndSerial) else None
    oid = signer.digest.algorithm.dotted_string
    return ModuleSignature(
        start=start,
        issuer=_read_name(identity) if identity else None,
        serial=identity.serial if identity else None,
        digest_algorithm=_DIGESTS[oid].name if oid in _DIGESTS else oid,
    )


def is_signed_by(content: bytes, certificate: x509.Certificate) -> bool:
    """Whether the outermost signature names this certificate and holds for all bytes before it.

    That is what the kernel checks when it loads the module. Signatures with signed attributes, by key
    identifier, or with SHA-1 are answered with False: `sign-file sha256` makes none of them, and signing
    again mends it.
    """
    public_key = certificate.public_key()
    try:
        found = read_signature(content)
        if found is None or not isinstance(public_key, rsa.RSAPublicKey):
            return False
        signer = _read_signer(content, found.start)
    except ModuleMalformed:
        return False
    digest = _DIGESTS.get(signer.digest.algorithm.dotted_string)
    if (
        (found.issuer, found.serial) != (certificate.issuer, certificate.serial_number)
        or digest is None
        or signer.signed_attributes is not None
        or signer.algorithm.algorithm.dotted_string not in _RSA_SIGNATURES
    ):
        return False
    try:
        public_key.verify(signer.signature, content[: found.start], padding.PKCS1v15(), digest)
    except InvalidSignature:
        return False
    return True


def load_certificate(data: bytes) -> x509.Certificate:
    """Certificate from the data of a Secret's `cert` field, PEM or DER.

    Raises:
        SigningKeyInvalid: it is neither, or its key is not RSA of at least 2048 bits.
    """
    try:
        pem = data.lstrip().startswith(_PEM)
        certificate = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
    except ValueError as error:
        message = "The field `cert` of the Secret in sign.certSecret holds no X.509 certificate (PEM or DER)."
        raise SigningKeyInvalid(message) from error
    _require_rsa(certificate.public_key(), "The certificate in the field `cert` of sign.certSecret")
    return certificate


def load_private_key(data: bytes) -> rsa.RSAPrivateKey:
    """Private key from the data of a Secret's `key` field: PKCS#8 or PKCS#1, PEM or DER, no passphrase.

    Raises:
        SigningKeyInvalid: it is none of these, or not RSA of at least 2048 bits. The message quotes nothing.
    """
    try:
        pem = data.lstrip().startswith(_PEM)
        key = load_pem_private_key(data, None) if pem else load_der_private_key(data, None)
    except TypeError as error:  # what cryptography raises for a key that is encrypted
        message = "The key in the field `key` of sign.keySecret has a passphrase; store it without one."
        raise SigningKeyInvalid(message) from error
    except ValueError as error:
        message = (
            "The field `key` of the Secret in sign.keySecret holds no PKCS#8 or PKCS#1 key (PEM or DER)."
        )
        raise SigningKeyInvalid(message) from error
    _require_rsa(key, "The private key in the field `key` of sign.keySecret")
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def check_key_matches(key: rsa.RSAPrivateKey, certificate: x509.Certificate) -> None:
    """Nothing, if the certificate was issued for this private key.

    Raises:
        SigningKeyInvalid: it was issued for another key, so that no kernel would accept the signatures.
    """
    ours, theirs = (
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for public in (key.public_key(), certificate.public_key())
    )
    if ours != theirs:
        raise SigningKeyInvalid(
            "The key in sign.keySecret (field `key`) does not belong to the certificate in sign.certSecret "
            f"(field `cert`, {certificate.subject.rfc4514_string()}). Store a matching pair."
        )


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate's DER form, 64 lower-case hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _require_rsa(key: object, what: str) -> None:
    if not isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey) or key.key_size < _MINIMUM_BITS:
        raise SigningKeyInvalid(
            f"{what} is not RSA with at least {_MINIMUM_BITS} bits, as module signing needs."
        )


def _signature_start(content: bytes, end: int) -> int | None:
    """Offset of the outermost signature of the module that ends at `end`, None if there is none."""
    if not content.endswith(MAGIC, 0, end):
        return None
    trailer = end - len(MAGIC) - _TRAILER.size
    if trailer < 0:
        raise ModuleMalformed(
            "It ends in the mark of a module signature but is too short for one. Build it anew."
        )
    algorithm, digest, kind, signer_length, key_id_length, length = _TRAILER.unpack_from(content, trailer)
    if kind != _PKCS7_ID or any((algorithm, digest, signer_length, key_id_length)) or length > trailer:
        raise ModuleMalformed(
            f"It ends in a signature that no kernel accepts (kind {kind}, {length} of {trailer} bytes). "
            "Build it anew."
        )
    return trailer - int(length)


def _read_signer(content: bytes, start: int) -> _Signer:
    der = content[start : len(content) - len(MAGIC) - _TRAILER.size]
    try:
        signers = asn1.decode_der(_Cms, der).content.signers.as_list()
    except ValueError as error:
        raise ModuleMalformed("The module's signature is no CMS SignedData (RFC 5652).") from error
    if len(signers) != 1:
        raise ModuleMalformed(f"The module's signature has {len(signers)} signers; the kernel wants one.")
    return signers[0]


def _read_name(identity: _IssuerAndSerial) -> x509.Name:
    try:
        return x509.Name(
            x509.RelativeDistinguishedName(
                x509.NameAttribute(field.kind, bytes(field.value.data).decode()) for field in part.as_list()
            )
            for part in identity.issuer
        )
    except ValueError as error:
        raise ModuleMalformed("The issuer named in the module's signature cannot be read.") from error
