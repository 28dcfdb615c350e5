"""Paths of the API, and the meaning of its refusals."""

from urllib.parse import unquote

import pytest

from shared.domain.errors import HubError, PermanentError, TransientError
from shared.kube.client import CONFIG_MAPS, MANAGED_CLUSTERS, MANIFEST_WORKS, MODULES, Resource, _error_for
from shared.kube.errors import ApiUnavailable, Conflict, Forbidden, Gone, NotFound, Refused

WORKS = "/apis/work.open-cluster-management.io/v1"


@pytest.mark.parametrize(
    ("resource", "namespace", "name", "subresource", "path"),
    [
        (MANIFEST_WORKS, None, None, None, f"{WORKS}/manifestworks"),
        (MANIFEST_WORKS, "c1", None, None, f"{WORKS}/namespaces/c1/manifestworks"),
        (MANIFEST_WORKS, "c1", "m", None, f"{WORKS}/namespaces/c1/manifestworks/m"),
        (MANIFEST_WORKS, "c1", "m", "status", f"{WORKS}/namespaces/c1/manifestworks/m/status"),
        (
            MODULES,
            None,
            "m",
            "status",
            "/apis/hub.kmm.sigs.x-k8s.io/v1beta1/managedclustermodules/m/status",
        ),
        (MANAGED_CLUSTERS, None, "c", None, "/apis/cluster.open-cluster-management.io/v1/managedclusters/c"),
        (CONFIG_MAPS, "ns", "a", None, "/api/v1/namespaces/ns/configmaps/a"),
    ],
)
def test_paths(
    resource: Resource, namespace: str | None, name: str | None, subresource: str | None, path: str
) -> None:
    assert resource.path(namespace, name, subresource) == path


@pytest.mark.parametrize(
    "text", ["a/b", "../x", "a?b=c", "a#b", "a%2Fb", "a b", "ü", "a\r\nHost: x", "a;b", "//h"]
)
def test_a_name_stays_one_segment_of_the_path(text: str) -> None:
    path = MANIFEST_WORKS.path(text, text, "status")
    assert path.count("/") == WORKS.count("/") + 5
    assert path.isascii()
    assert set(path).isdisjoint("?# \r\n;")
    assert [unquote(part) for part in path.split("/")[-4:]] == [text, "manifestworks", text, "status"]


@pytest.mark.parametrize(
    ("status", "kind", "family"),
    [
        (400, Refused, PermanentError),
        (401, Forbidden, TransientError),
        (403, Forbidden, TransientError),
        (404, NotFound, TransientError),
        (409, Conflict, TransientError),
        (410, Gone, TransientError),
        (413, Refused, PermanentError),
        (422, Refused, PermanentError),
        (429, ApiUnavailable, TransientError),
        (500, ApiUnavailable, TransientError),
        (503, ApiUnavailable, TransientError),
        (504, ApiUnavailable, TransientError),
    ],
)
def test_the_meaning_of_a_status(status: int, kind: type[HubError], family: type[HubError]) -> None:
    error = _error_for(status, b'{"kind":"Status","message":"no"}', "POST", "/x", {})
    assert type(error) is kind
    assert isinstance(error, family)
    assert str(error) == "POST /x: no"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(b'{"message":"denied the request"}', "denied the request", id="status"),
        pytest.param(b"{}", "HTTP 422", id="without-message"),
        pytest.param(b"[1]", "[1]", id="not-an-object"),
        pytest.param(b"", "HTTP 422", id="empty"),
        pytest.param(b"<html>proxy</html>", "<html>proxy</html>", id="no-json"),
        pytest.param(b"\xff\xfe", "\ufffd\ufffd", id="no-text"),
    ],
)
def test_an_error_says_what_the_server_said(answer: bytes, words: str) -> None:
    assert str(_error_for(422, answer, "PATCH", "/y", {})) == f"PATCH /y: {words}"


def test_an_answer_that_is_no_status_is_cut() -> None:
    assert len(str(_error_for(500, b"x" * 100_000, "GET", "/", {}))) < 600


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        ("0", 0.0),
        ("", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("-1", None),
        ("1.5", None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_how_long_to_wait(status: int, value: str, seconds: float | None) -> None:
    error = _error_for(status, b"{}", "GET", "/", {"Retry-After": value})
    assert isinstance(error, ApiUnavailable)
    assert error.retry_after == seconds
