"""Keys and images of the simulation: the same in every run, because what they decide must be, too."""

from __future__ import annotations

import datetime as dt
import random

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

EXPONENT = 65537
PRIME_BITS = 1024
"""The least that signing takes: nothing is protected, and thousands of signatures are made."""


def _is_prime(number: int, chance: random.Random) -> bool:
    """Miller-Rabin (FIPS 186-5, B.3.1); wrong once in 2**32."""
    twos = (number - 1 & 1 - number).bit_length() - 1
    odd = number - 1 >> twos
    for _ in range(16):
        value = pow(chance.randrange(2, number - 1), odd, number)
        if value in {1, number - 1}:
            continue
        if all((value := value * value % number) != number - 1 for _ in range(twos - 1)):
            return False
    return True


def _prime(chance: random.Random) -> int:
    while True:
        number = chance.getrandbits(PRIME_BITS) | 3 << (PRIME_BITS - 2) | 1
        if pow(2, number - 1, number) == 1 and _is_prime(number, chance) and (number - 1) % EXPONENT:
            return number


def _key(seed: int) -> rsa.RSAPrivateKey:
    """The key of a seed. The library draws its own randomness, so the primes are drawn here."""
    chance = random.Random(seed)
    p, q = _prime(chance), _prime(chance)
    private = pow(EXPONENT, -1, (p - 1) * (q - 1))
    return rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=private,
        dmp1=rsa.rsa_crt_dmp1(private, p),
        dmq1=rsa.rsa_crt_dmq1(private, q),
        iqmp=rsa.rsa_crt_iqmp(p, q),
        public_numbers=rsa.RSAPublicNumbers(EXPONENT, p * q),
    ).private_key()


def _certificate(key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "simulated signer")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2120, 1, 1, tzinfo=dt.UTC))
        .sign(key, hashes.SHA256())
    )


_KEY = _key(seed=1)

PRIVATE_KEY = _KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
CERTIFICATE = _certificate(_KEY).public_bytes(serialization.Encoding.PEM)
