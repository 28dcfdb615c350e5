"""The text form of nkeys, by the example of github.com/nats-io/nkeys and by damage."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.bus.nkey import InvalidNkey, Nkey

# The pair in the documentation of NATS, "NKeys": anybody may know it.
SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
PUBLIC = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"


def test_the_documented_pair_is_read_and_written() -> None:
    key = Nkey.from_seed(f" {SEED}\n")
    assert (key.public, key.seed) == (PUBLIC, SEED)
    assert SEED not in repr(key)
    assert PUBLIC in repr(key)


def test_a_signature_is_verified_by_the_public_key() -> None:
    key = Nkey.generate()
    raw = base64.b32decode(key.public)[1:33]
    signature = base64.urlsafe_b64decode(key.sign("nonce") + b"==")
    Ed25519PublicKey.from_public_bytes(raw).verify(signature, b"nonce")


def test_each_new_key_is_another_one_and_is_read_again() -> None:
    keys = [Nkey.generate() for _ in range(20)]
    assert len({key.public for key in keys}) == 20
    assert all(Nkey.from_seed(key.seed).public == key.public for key in keys)
    assert all(key.seed.startswith("SU") and key.public.startswith("U") for key in keys)


@pytest.mark.parametrize(
    "text", ["", "SU", PUBLIC, SEED[:-1], SEED + "A", SEED.lower(), "SA" + SEED[2:], "1" + SEED[1:]]
)
def test_anything_else_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(InvalidNkey) as caught:
        Nkey.from_seed(text)
    assert len(text) < 10 or text not in str(caught.value)


@pytest.mark.parametrize("position", range(0, len(SEED), 5))
def test_one_wrong_letter_is_noticed(position: int) -> None:
    wrong = "A" if SEED[position] != "A" else "B"
    with pytest.raises(InvalidNkey):
        Nkey.from_seed(SEED[:position] + wrong + SEED[position + 1 :])
