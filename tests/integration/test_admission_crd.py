"""The CRD on a real API server and the domain's rules refuse the same objects, and say where and what to write."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import admission_cases as cases
import pytest
from admission_cases import ACCEPTED, REFUSED, Refusal
from admission_edges import BOUNDS, LEFT_TO_THE_WEBHOOK, UPDATES, Update
from crd_samples import module
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubectl import Hub, Kubectl
from kubernetes import client, config

from shared.domain.admission import validate, validate_update

pytestmark = pytest.mark.integration

HUB_MODULES = ("hub.kmm.sigs.x-k8s.io", "v1beta1", "managedclustermodules")
MODULES = ("kmm.sigs.x-k8s.io", "v1beta1")
Cause = tuple[str, str]


class Api:
    """Objects on the API server, by the kubernetes package: a connection that stays is fast."""

    def __init__(self, connection: Any) -> None:
        self._objects = client.CustomObjectsApi(connection)

    def causes(self, manifest: dict[str, Any]) -> list[Cause]:
        """Field and message of each reason why the object is refused; nothing is stored."""
        if manifest["kind"] == "Module":
            create = partial(self._objects.create_namespaced_custom_object, *MODULES, "default", "modules")
        else:
            create = partial(self._objects.create_cluster_custom_object, *HUB_MODULES)
        return _causes(lambda: create(manifest, dry_run="All"))

    def causes_of_update(self, manifest: dict[str, Any]) -> list[Cause]:
        """The same for the object that replaces the stored one of its name."""
        replace = partial(self._objects.replace_cluster_custom_object, *HUB_MODULES)
        return _causes(lambda: replace(manifest["metadata"]["name"], manifest, dry_run="All"))

    @contextmanager
    def stored(self, manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The object while it is on the API server."""
        yield self._objects.create_cluster_custom_object(*HUB_MODULES, manifest)
        self._objects.delete_cluster_custom_object(*HUB_MODULES, manifest["metadata"]["name"])


def _causes(request: Callable[[], object]) -> list[Cause]:
    try:
        request()
    except client.ApiException as error:
        if error.status != 422:
            raise
        causes = json.loads(error.body)["details"]["causes"]
        return [(cause["field"], cause["message"]) for cause in causes]
    return []


@pytest.fixture(scope="module")
def api(hub: Hub) -> Iterator[Api]:
    """A hub that has the CRDs of the project."""
    Kubectl(hub).apply_crds()
    with config.new_client_from_config(str(hub.kubeconfig)) as connection:
        yield Api(connection)


@pytest.mark.parametrize("title", ACCEPTED)
def test_what_upstream_accepts_is_accepted_by_both(api: Api, title: str) -> None:
    assert api.causes(ACCEPTED[title]) == []
    assert validate(ACCEPTED[title]) == ()


@pytest.mark.parametrize("refusal", REFUSED, ids=lambda one: one.title)
def test_what_is_wrong_is_refused_by_both_and_the_spokes_kind_stays_lax(api: Api, refusal: Refusal) -> None:
    [(field, message)] = api.causes(refusal.manifest)

    assert (field, refusal.says in message) == (refusal.field, True), message
    violations = validate(refusal.manifest)
    assert violations
    # Both point to the same part of the object, if not always to the same field of it.
    assert any(one.path.startswith(field.rpartition(".")[0]) for one in violations) or "name" in message
    assert api.causes(module(refusal.manifest["spec"]["moduleSpec"])) == []


@pytest.mark.parametrize("title", LEFT_TO_THE_WEBHOOK)
def test_what_cel_cannot_say_is_refused_by_the_domain_alone(api: Api, title: str) -> None:
    assert api.causes(LEFT_TO_THE_WEBHOOK[title]) == []
    assert validate(LEFT_TO_THE_WEBHOOK[title]) != ()


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda one: one.title)
def test_bounds_of_the_crd_alone(api: Api, bound: Refusal) -> None:
    (field, message), *rest = api.causes(bound.manifest)

    # Too much for a bound is too much for the rules, too: the API server says that it did not ask them.
    assert all("not checked because the object was invalid" in why for _, why in rest)
    assert (field, bound.says in message) == (bound.field, True), message
    assert validate(bound.manifest) == ()


@pytest.mark.parametrize("update", UPDATES, ids=lambda one: one.title)
def test_updates(api: Api, update: Update) -> None:
    new = deepcopy(update.new)
    new["metadata"]["name"] = update.old["metadata"]["name"]
    with api.stored(update.old) as stored:
        new["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]
        causes = api.causes_of_update(new)

    assert bool(causes) == bool(validate_update(new, stored)) == bool(update.says)
    assert all(update.says in message for _, message in causes)


def joined(*parts: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(parts), max_size=6).map("".join)


PATTERNS = joined(
    *(
        "a",
        "^",
        "$",
        ".",
        "|",
        "(",
        ")",
        "[",
        "]",
        "[^",
        "*",
        "+",
        "?",
        "{2}",
        "{1001}",
        "{",
        r"\d",
        r"\1",
        r"\C",
    ),
    *("(?=", "(?i)", "(?:", "(?P<n>", "(?<", r"\Q", r"\E", r"\pN", "[[:alpha:]]", "\\", "é", "\n", "-"),
)
PATHS = joined("/", "/dev", "dev", "/..", "..", "/.", ".", "/var", "/etc", "x", "\n")
KEYS = joined("a", "Z", "0", "-", ".", "_", "/", "é", " ", "x" * 31, "example.com/")
IMAGES = joined(
    "i", "/", ":", "@", "r.example", ":5000", "1.0", "${X}", "${X:-i:1}", "${KERNEL_FULL_VERSION:-a/b}", "$X"
)
NAMESPACES = joined("a", "Z", "0", "-", ".", "é", "x" * 20)
ONE_TOLERATION = st.fixed_dictionaries(
    {},
    optional={
        "key": KEYS,
        "operator": st.sampled_from(["", "Equal", "Exists", "exists"]),
        "value": KEYS,
        "effect": st.sampled_from(["", "NoSchedule", "NoExecute", "Never"]),
        "tolerationSeconds": st.integers(-1, 9),
    },
)
NAMES = st.lists(st.sampled_from("abc"), max_size=3)
MODPROBE = st.fixed_dictionaries(
    {},
    optional={
        "moduleName": st.sampled_from(["", "a"]),
        "modulesLoadingOrder": NAMES,
        "rawArgs": st.fixed_dictionaries({}, optional={"load": st.just(["x"]), "unload": st.just(["x"])}),
    },
)
IN_TREE = st.fixed_dictionaries(
    {}, optional={"inTreeModuleToRemove": st.sampled_from(["", "a"]), "inTreeModulesToRemove": NAMES}
)
OBJECTS = st.one_of(
    st.builds(cases.of, st.just(f"{cases.MAPPING}.regexp"), PATTERNS),
    st.builds(cases.of, st.just(f"{cases.MAPPING}.containerImage"), IMAGES),
    st.builds(cases.mounting, st.sampled_from(["dra", "devicePlugin"]), PATHS),
    st.builds(lambda one: cases.tolerating(**one), ONE_TOLERATION),
    st.builds(lambda one: cases.loading(**one), MODPROBE),
    st.builds(cases.removing, IN_TREE, IN_TREE),
    st.builds(
        lambda at, files, directory: cases.signing(at, *files, directory=directory),
        st.sampled_from([cases.LOADER, cases.MAPPING]),
        st.lists(joined("/", "opt", "a.ko", ".."), max_size=2),
        st.sampled_from(["", "/", "/opt", "/opt/", "opt"]),
    ),
    st.builds(cases.named, st.sampled_from(["m", "m" * 20]), NAMESPACES),
)


@given(manifest=OBJECTS)
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_both_agree_on_whatever_is_written(api: Api, manifest: dict[str, Any]) -> None:
    is_refused_by_crd, is_refused_by_domain = bool(api.causes(manifest)), bool(validate(manifest))

    text = json.dumps(manifest["spec"])
    if is_refused_by_domain and not is_refused_by_crd:
        assert ".." in text or "${" in text
    else:
        assert is_refused_by_crd == is_refused_by_domain
