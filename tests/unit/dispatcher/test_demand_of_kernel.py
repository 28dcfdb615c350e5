"""What one kernel of one module needs: the artifact that is asked for, or the reason why none can be."""

from typing import Any

import pytest
from fleet_values import BUILD, CONFIGURATION, KERNELS, NAME, SIGN, raw_spec, stored_module

from services.dispatcher.catalog import Catalog
from services.dispatcher.demand import Configuration, SecretFact, Unmet, Wanted
from shared.domain.artifact import Access, BuildRecipe, SignRecipe
from shared.domain.kernel import KernelVersion

KERNEL = KernelVersion("5.14.0-570.el9.x86_64+debug")
Json = dict[str, Any]


def demanded(
    spec: Json,
    kernel: KernelVersion = KERNEL,
    *,
    name: str = NAME,
    configuration: Configuration = CONFIGURATION,
) -> Wanted | Unmet:
    return Catalog().read(stored_module(spec, name=name)).demand(kernel, configuration)


def wanted(spec: Json, kernel: KernelVersion = KERNEL, **rest: Any) -> Wanted:
    need = demanded(spec, kernel, **rest)
    assert isinstance(need, Wanted), need
    return need


def one(image: str = "r.example/k:1", **fields: Any) -> Json:
    return {"regexp": ".", "containerImage": image, **fields}


# --------------------------------------------------------------------------------------------------- what is asked for


def test_a_plain_image() -> None:
    need = wanted(raw_spec(one()))
    request = need.request
    assert (request.target, request.kernel, request.architecture) == ("r.example/k:1", KERNEL, "amd64")
    assert (request.build, request.sign, request.access) == (None, None, Access())
    assert (request.repo_secret, request.repo_secret_version, request.rebuild_trigger) == (None, None, None)
    assert need.resolution.image == "r.example/k:1"


@pytest.mark.parametrize(
    ("image", "target"),
    [
        ("r.example/k", "r.example/k:latest"),
        ("k", "k:latest"),
        ("r.example:5000/a/k:1", "r.example:5000/a/k:1"),
        ("r.example/k@sha256:" + "a" * 64, "r.example/k@sha256:" + "a" * 64),
        (
            "r.example/${MOD_NAMESPACE}/${MOD_NAME}:${KERNEL_FULL_VERSION}",
            "r.example/spoke/m:5.14.0-570.el9.x86_64_debug",
        ),
    ],
)
def test_the_target(image: str, target: str) -> None:
    """MOD_NAMESPACE is the spoke's namespace, here as in what is shipped; upstream's hub asks for another name."""
    assert wanted(raw_spec(one(image))).request.target == target


@pytest.mark.parametrize(
    ("kernel", "architecture"),
    [("5.14.0-570.el9.aarch64", "arm64"), ("5.15.0-100-generic", "amd64"), ("6.1.0-1.s390x", "s390x")],
)
def test_the_architecture_is_the_kernels(kernel: str, architecture: str) -> None:
    assert wanted(raw_spec(one()), KernelVersion(kernel)).request.architecture == architecture


def test_a_build() -> None:
    """MOD_NAME is the module's name (upstream: `<module>-<cluster>`), so that one build serves the whole fleet."""
    build = {
        **BUILD,
        "buildArgs": [{"name": "MODE", "value": "fast"}, {"name": "MOD_NAME", "value": "mine"}],
        "secrets": [{"name": "token"}],
        "baseImageRegistryTLS": {"insecureSkipTLSVerify": True},
    }
    assert wanted(raw_spec(one(build=build))).request.build == BuildRecipe(
        dockerfile="FROM scratch\n",
        args=(
            ("MODE", "fast"),
            ("MOD_NAME", "m"),
            ("KERNEL_FULL_VERSION", KERNEL),
            ("KERNEL_VERSION", KERNEL),
            ("MOD_NAMESPACE", "spoke"),
        ),
        secrets=(("token", "t1"),),
        base_access=Access(skip_tls_verify=True),
    )


@pytest.mark.parametrize(
    ("build", "source"),
    [
        pytest.param({}, "r.example/u:5.14.0", id="source-is-the-unsigned-image"),
        pytest.param({"build": BUILD}, None, id="what-was-built-is-the-source"),
    ],
)
def test_a_signature(build: Json, source: str | None) -> None:
    sign = {
        **SIGN,
        "unsignedImage": "r.example/u:${KERNEL_XYZ}",
        "unsignedImageRegistryTLS": {"insecure": True},
    }
    assert wanted(raw_spec(one(**build, sign=sign))).request.sign == SignRecipe(
        files=("/opt/a.ko",),
        key_secret="key",
        key_version="k1",
        cert_secret="cert",
        cert_version="c1",
        source=source,
        source_access=Access(insecure=True),
    )


def test_an_unsigned_image_without_tag_means_latest() -> None:
    sign = wanted(raw_spec(one(sign={**SIGN, "unsignedImage": "r.example/u"}))).request.sign
    assert sign is not None
    assert sign.source == "r.example/u:latest"


def test_access_credentials_and_trigger() -> None:
    module = {"imageRepoSecret": {"name": "pull"}, "imageRebuildTriggerGeneration": 3}
    request = wanted(raw_spec(one(registryTLS={"insecure": True}), module=module)).request
    assert request.access == Access(insecure=True)
    assert (request.repo_secret, request.repo_secret_version, request.rebuild_trigger) == ("pull", "p1", 3)


# ------------------------------------------------------------------------------------------------ what changes the key

FULL = raw_spec(
    one(build={**BUILD, "secrets": [{"name": "token"}]}, sign=SIGN),
    module={"imageRepoSecret": {"name": "pull"}},
)


def configured(**changes: Any) -> Configuration:
    fields = {name: getattr(CONFIGURATION, name) for name in Configuration.__slots__}
    return Configuration(**{**fields, **changes})


def with_version(name: str) -> Configuration:
    secrets = dict(CONFIGURATION.secrets)
    return configured(secrets={**secrets, name: SecretFact(version="new", keys=secrets[name].keys)})


@pytest.mark.parametrize(
    "configuration",
    [
        pytest.param(configured(dockerfiles={"df": "FROM other\n"}), id="dockerfile"),
        *(pytest.param(with_version(name), id=name) for name in ("key", "cert", "token", "pull")),
    ],
)
def test_a_change_of_what_the_module_names_is_a_new_artifact(configuration: Configuration) -> None:
    assert wanted(FULL, configuration=configuration).request.key != wanted(FULL).request.key


@pytest.mark.parametrize(
    "configuration",
    [
        pytest.param(configured(namespace="elsewhere"), id="namespace-is-for-messages"),
        pytest.param(
            configured(dockerfiles={**CONFIGURATION.dockerfiles, "more": "x"}), id="another-config-map"
        ),
        pytest.param(with_version("bare"), id="a-secret-that-is-not-named"),
    ],
)
def test_a_change_of_anything_else_is_not(configuration: Configuration) -> None:
    assert wanted(FULL, configuration=configuration).request.key == wanted(FULL).request.key


def test_two_modules_that_need_the_same_image_share_it() -> None:
    assert wanted(raw_spec(one()), name="a").request.key == wanted(raw_spec(one()), name="b").request.key


def test_each_kernel_is_an_artifact_of_its_own() -> None:
    keys = {wanted(raw_spec(), kernel).request.key for kernel in KERNELS}
    assert len(keys) == len(KERNELS)


# -------------------------------------------------------------------------------------------------- what cannot be met


def named(kind: str, name: str) -> Json:
    return {**SIGN, "unsignedImage": "r.example/u:1", kind: {"name": name}}


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        pytest.param(raw_spec(one("")), "InvalidResolution", "containerImage", id="no-image"),
        pytest.param(
            raw_spec(one("r.example/k:${")), "InvalidResolution", "not closed", id="broken-template"
        ),
        pytest.param(raw_spec({**one(), "regexp": "(?=x)"}), "InvalidPattern", r"(?=x)", id="broken-pattern"),
        pytest.param(raw_spec(one("r.example/UP:1")), "InvalidImageReference", "UP", id="no-reference"),
        pytest.param(
            raw_spec(one("r.example/k@sha256:" + "a" * 64, build=BUILD)),
            "InvalidImageReference",
            "name:tag",
            id="a-build-needs-a-tag",
        ),
        pytest.param(
            raw_spec(one(build={})), "InvalidResolution", "dockerfileConfigMap", id="no-config-map-named"
        ),
        pytest.param(
            raw_spec(one(build={"dockerfileConfigMap": {"name": "nix"}})),
            "ConfigMapMissing",
            "'nix' (build.dockerfileConfigMap) does not exist in namespace 'kmm'",
            id="config-map-missing",
        ),
        pytest.param(
            raw_spec(one(build={"dockerfileConfigMap": {"name": "empty"}})),
            "DockerfileMissing",
            "has no key 'dockerfile'",
            id="config-map-without-dockerfile",
        ),
        pytest.param(
            raw_spec(one(build={**BUILD, "secrets": [{"name": "nix"}]})),
            "SecretMissing",
            "'nix' (build.secrets)",
            id="build-secret-missing",
        ),
        pytest.param(
            raw_spec(one(), module={"imageRepoSecret": {"name": "nix"}}),
            "SecretMissing",
            "'nix' (imageRepoSecret)",
            id="credentials-missing",
        ),
        pytest.param(
            raw_spec(one(sign=named("keySecret", "nix"))), "SecretMissing", "keySecret", id="key-missing"
        ),
        pytest.param(
            raw_spec(one(sign=named("certSecret", "nix"))), "SecretMissing", "certSecret", id="cert-missing"
        ),
        pytest.param(
            raw_spec(one(sign=named("keySecret", "cert"))), "SecretIncomplete", "'key'", id="no-field-key"
        ),
        pytest.param(
            raw_spec(one(sign=named("certSecret", "key"))), "SecretIncomplete", "'cert'", id="no-field-cert"
        ),
        pytest.param(
            raw_spec(one(sign={**SIGN, "unsignedImage": "UP"})),
            "InvalidImageReference",
            "UP",
            id="bad-unsigned-image",
        ),
    ],
)
def test_a_need_that_cannot_be_met_says_why(spec: Json, reason: str, words: str) -> None:
    need = demanded(spec)
    assert isinstance(need, Unmet)
    assert (need.reason, need.is_match) == (reason, True)
    assert words in need.message


def test_a_kernel_that_no_mapping_takes() -> None:
    need = demanded(raw_spec({**one(), "regexp": "^6"}))
    assert isinstance(need, Unmet)
    assert (need.reason, need.is_match) == ("NoMatchingKernel", False)


def test_a_signature_needs_something_to_sign() -> None:
    """KMM API: `unsignedImage` is needed where nothing is built; upstream refuses, too."""
    assert isinstance(demanded(raw_spec(one(sign=SIGN))), Unmet)


def test_an_image_that_is_signed_needs_a_tag() -> None:
    sign = {**SIGN, "unsignedImage": "r.example/u:1"}
    assert isinstance(demanded(raw_spec(one("r.example/k@sha256:" + "a" * 64, sign=sign))), Unmet)
