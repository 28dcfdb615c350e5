"""Which address a registry has, and which addresses it may lead to."""

import pytest
from yarl import URL

from shared.domain.image import ImageReference
from shared.registry.access import ANONYMOUS, Credentials, RegistryAccess, check_address, registry_url
from shared.registry.auth import parse_challenge
from shared.registry.errors import UnsafeAddress


@pytest.mark.parametrize(
    ("image", "access", "expected"),
    [
        ("quay.example/a/b:1", ANONYMOUS, "https://quay.example/v2/"),
        ("quay.example:8443/a/b", ANONYMOUS, "https://quay.example:8443/v2/"),
        ("quay.example/a/b", RegistryAccess(insecure=True), "http://quay.example/v2/"),
        ("quay.example/a/b", RegistryAccess(skip_tls_verify=True), "https://quay.example/v2/"),
        ("localhost:5000/a", ANONYMOUS, "http://localhost:5000/v2/"),
        ("127.0.0.1:5000/a", ANONYMOUS, "http://127.0.0.1:5000/v2/"),
        ("127.9.8.7:5000/a", ANONYMOUS, "http://127.9.8.7:5000/v2/"),
        ("[::1]:5000/a", ANONYMOUS, "http://[::1]:5000/v2/"),
        ("127.0.0.1:5000/a", RegistryAccess(skip_tls_verify=True), "https://127.0.0.1:5000/v2/"),
        ("localhost.example/a", ANONYMOUS, "https://localhost.example/v2/"),
        ("busybox", ANONYMOUS, "https://registry-1.docker.io/v2/"),
    ],
)
def test_the_address_of_a_registry(image, access, expected):
    assert str(registry_url(ImageReference.parse(image), access)) == expected


@pytest.mark.parametrize(
    ("registry", "address"),
    [
        ("https://r.example/v2/", "https://auth.example/token"),
        ("https://r.example/v2/", "https://10.0.0.7/token"),
        ("http://r.example/v2/", "http://storage.example/blob"),
        ("http://r.example/v2/", "https://storage.example/blob"),
        ("http://127.0.0.1:5000/v2/", "http://127.0.0.1:5001/token"),
        ("https://r.example/v2/", "https://r.example/v2/x"),
    ],
)
def test_addresses_that_may_be_followed(registry, address):
    assert check_address(URL(address), URL(registry)) is None


@pytest.mark.parametrize(
    ("registry", "address"),
    [
        ("https://r.example/v2/", "http://auth.example/token"),
        ("https://r.example/v2/", "http://r.example/v2/x"),
        ("https://r.example/v2/", "file:///etc/passwd"),
        ("https://r.example/v2/", "ftp://r.example/x"),
        ("http://r.example/v2/", "http://169.254.169.254/latest/meta-data"),
        ("https://r.example/v2/", "https://[fe80::1]/x"),
        ("http://r.example/v2/", "http://127.0.0.1:8080/metrics"),
        ("http://r.example/v2/", "http://localhost/x"),
        ("http://r.example/v2/", "http://[::1]/x"),
        ("http://r.example/v2/", "http://0.0.0.0/x"),
        ("http://169.254.169.254/v2/", "http://169.254.169.254/v2/"),
        ("https://r.example/v2/", "token"),
    ],
)
def test_addresses_that_may_not_be_followed(registry, address):
    with pytest.raises(UnsafeAddress):
        check_address(URL(address), URL(registry))


def test_a_password_is_not_shown():
    assert "hidden" not in repr(RegistryAccess(credentials=Credentials(username="u", password="hidden")))


@pytest.mark.parametrize(
    ("headers", "scheme", "parameters"),
    [
        (['Basic realm="x"'], "basic", {"realm": "x"}),
        (
            ['Bearer realm="https://a.example/t",service="s, with comma",scope="repository:a/b:pull,push"'],
            "bearer",
            {"realm": "https://a.example/t", "service": "s, with comma", "scope": "repository:a/b:pull,push"},
        ),
        (["bearer realm=https://a.example/t"], "bearer", {"realm": "https://a.example/t"}),
        (['Basic realm="x"', 'Bearer realm="y"'], "bearer", {"realm": "y"}),
        (["Basic"], "basic", {}),
        (["Bearer nonsense"], "bearer", {}),
    ],
)
def test_challenges(headers, scheme, parameters):
    challenge = parse_challenge(headers)
    assert challenge is not None
    assert (challenge.scheme, challenge.parameters) == (scheme, parameters)


@pytest.mark.parametrize("headers", [[], ["Negotiate"], [""]])
def test_challenges_that_cannot_be_answered(headers):
    assert parse_challenge(headers) is None
