"""What the build stage does with what the registry has: adopt, build, or wait."""

from typing import Any

import pytest

from services.builder.plan import Adopt, Build, Found, Missing, Plan, Promote, plan, staging_tag
from shared.domain.artifact import ArtifactRequest, BuildRecipe, SignRecipe
from shared.domain.kernel import KernelVersion

TAG = "r.example:5000/a/k:1"
SOURCE = "r.example/unsigned:1"
BUILD = BuildRecipe(dockerfile="FROM scratch\n", args=())
SIGN = SignRecipe(
    files=("/opt/a.ko",), key_secret="key", key_version="1", cert_secret="cert", cert_version="1"
)
SIGN_ONLY = SignRecipe(**{**{name: getattr(SIGN, name) for name in SignRecipe.__slots__}, "source": SOURCE})


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def request(**fields: Any) -> ArtifactRequest:
    return ArtifactRequest(
        **{"target": TAG, "kernel": KernelVersion("5.1.1-1.x86_64"), "architecture": "amd64", **fields}
    )


PLAIN = request()
BUILT = request(build=BUILD)
BUILT_AND_SIGNED = request(build=BUILD, sign=SIGN)
SIGNED = request(sign=SIGN_ONLY)


def found(number: int, *, recipe: str | None = None, source: str | None = None) -> Found:
    return Found(digest=digest(number), recipe=recipe, source_digest=source)


def pinned(number: int, name: str = "r.example:5000/a/k") -> Adopt:
    return Adopt(image=f"{name}@{digest(number)}")


def promoted(number: int) -> Promote:
    return Promote(image=f"r.example:5000/a/k@{digest(number)}")


STAGING = f"r.example:5000/a/k:kmm-unsigned-{BUILT.recipe[:32]}"
OURS = BUILT.recipe


@pytest.mark.parametrize(
    ("given", "target", "other", "expected"),
    [
        # nothing is made here
        pytest.param(PLAIN, found(1), None, pinned(1), id="plain-there"),
        pytest.param(PLAIN, None, None, Missing(image=TAG), id="plain-missing"),
        pytest.param(
            PLAIN, found(1, recipe="whatever"), None, pinned(1), id="plain-does-not-ask-who-built-it"
        ),
        pytest.param(
            request(target=f"r.example/k@{digest(7)}"), found(7), None, pinned(7, "r.example/k"), id="digest"
        ),
        # built, not signed
        pytest.param(BUILT, None, None, Build(destination=STAGING), id="build-missing"),
        pytest.param(BUILT, found(1, recipe=OURS), None, pinned(1), id="build-there"),
        pytest.param(BUILT, found(1), None, pinned(1), id="build-adopts-somebody-elses"),
        pytest.param(
            BUILT,
            found(1, recipe="old"),
            None,
            Build(destination=STAGING),
            id="build-replaces-another-recipe",
        ),
        pytest.param(BUILT, None, found(2, recipe=OURS), promoted(2), id="build-staged-and-not-promoted"),
        pytest.param(
            BUILT, found(1, recipe="old"), found(2, recipe=OURS), promoted(2), id="build-put-back-to-what-was"
        ),
        pytest.param(
            BUILT, found(1, recipe=OURS), found(2, recipe=OURS), pinned(1), id="build-there-and-staged-anew"
        ),
        pytest.param(
            BUILT,
            found(1, recipe=OURS, source=digest(2)),
            found(2, recipe=OURS),
            promoted(2),
            id="build-that-was-signed-is-not-signed-any-more",
        ),
        pytest.param(BUILT, None, found(2, recipe="old"), Build(destination=STAGING), id="build-staged-old"),
        pytest.param(BUILT, found(1), found(2, recipe=OURS), pinned(1), id="build-staged-after-a-stranger"),
        # built and signed
        pytest.param(BUILT_AND_SIGNED, None, None, Build(destination=STAGING), id="both-missing"),
        pytest.param(
            BUILT_AND_SIGNED,
            None,
            found(2, recipe=OURS),
            pinned(2),
            id="both-staged-after-a-failed-signature",
        ),
        pytest.param(
            BUILT_AND_SIGNED, None, found(2), Build(destination=STAGING), id="both-staged-by-a-stranger"
        ),
        pytest.param(
            BUILT_AND_SIGNED, None, found(2, recipe="old"), Build(destination=STAGING), id="both-staged-old"
        ),
        pytest.param(
            BUILT_AND_SIGNED,
            found(1, recipe=OURS),
            found(2, recipe=OURS),
            pinned(2),
            id="both-final-there-is-signed-from-the-build-again",
        ),
        pytest.param(
            BUILT_AND_SIGNED,
            found(1, recipe=OURS),
            None,
            pinned(1),
            id="both-final-there-though-the-build-was-cleaned-up",
        ),
        pytest.param(BUILT_AND_SIGNED, found(1), None, pinned(1), id="both-adopts-somebody-elses"),
        pytest.param(
            BUILT_AND_SIGNED, found(1, recipe="old"), None, Build(destination=STAGING), id="both-final-is-old"
        ),
        pytest.param(
            BUILT_AND_SIGNED,
            found(1, recipe="old"),
            found(2, recipe=OURS),
            pinned(2),
            id="both-final-old-but-staged",
        ),
        # only signed
        pytest.param(SIGNED, None, None, Missing(image=SOURCE), id="sign-source-missing"),
        pytest.param(SIGNED, None, found(2), pinned(2, "r.example/unsigned"), id="sign-takes-the-source"),
        pytest.param(SIGNED, found(1), found(2), pinned(1), id="sign-adopts-somebody-elses"),
        pytest.param(
            SIGNED,
            found(1, source=digest(2)),
            found(2),
            pinned(2, "r.example/unsigned"),
            id="sign-there-is-signed-from-the-source-again",
        ),
        pytest.param(
            SIGNED,
            found(1, source=digest(9)),
            found(2),
            pinned(2, "r.example/unsigned"),
            id="sign-source-has-moved-on",
        ),
        pytest.param(
            SIGNED,
            found(1),
            None,
            pinned(1),
            id="sign-adopts-though-the-source-was-cleaned-up",
        ),
        pytest.param(
            SIGNED,
            found(1, source=digest(2)),
            None,
            pinned(1),
            id="sign-keeps-ours-though-the-source-was-cleaned-up",
        ),
    ],
)
def test_plan(given: ArtifactRequest, target: Found | None, other: Found | None, expected: Plan) -> None:
    assert plan(given, target=target, other=other) == expected


@pytest.mark.parametrize("target", [None, found(1), found(1, recipe="old"), found(1, recipe=OURS)])
@pytest.mark.parametrize("other", [None, found(2), found(2, recipe="old"), found(2, recipe=OURS)])
def test_an_unsigned_image_never_bears_the_final_tag(target: Found | None, other: Found | None) -> None:
    answer = plan(BUILT_AND_SIGNED, target=target, other=other)
    assert isinstance(answer, Adopt | Build)
    assert not (isinstance(answer, Build) and answer.destination == TAG)


@pytest.mark.parametrize("given", [PLAIN, SIGNED])
def test_only_what_is_built_is_staged(given: ArtifactRequest) -> None:
    assert staging_tag(given) is None


@pytest.mark.parametrize("given", [BUILT, BUILT_AND_SIGNED])
def test_the_staging_tag(given: ArtifactRequest) -> None:
    assert staging_tag(given) == STAGING


def test_another_recipe_waits_elsewhere_and_another_key_does_not() -> None:
    other_text = request(build=BuildRecipe(dockerfile="FROM other\n", args=()), sign=SIGN)
    other_key = request(
        build=BUILD,
        sign=SignRecipe(
            **{**{name: getattr(SIGN, name) for name in SignRecipe.__slots__}, "key_version": "2"}
        ),
    )
    assert staging_tag(other_text) != STAGING
    assert staging_tag(other_key) == STAGING


@pytest.mark.parametrize("length", [1, 128])
def test_a_staging_tag_fits_whatever_the_targets_tag(length: int) -> None:
    tag = staging_tag(request(target="r.example/k:" + "t" * length, build=BUILD, sign=SIGN))
    assert tag is not None
    assert len(tag.rpartition(":")[2]) <= 128
