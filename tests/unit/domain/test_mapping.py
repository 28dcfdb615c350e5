"""Mapping resolution: which entry wins, what it inherits, what templates and arguments it gets, and its errors."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.artifact import Access
from shared.domain.mapping import (
    InvalidPattern,
    InvalidResolution,
    MappingIndex,
    NoMatchingKernel,
    Resolution,
)
from shared.domain.module import parse_module

KERNEL = "5.14.0-570.el9_6.x86_64"
MAPPINGS = "spec.moduleSpec.moduleLoader.container.kernelMappings"
Json = dict[str, Any]


def index_of(mappings: list[Json], **container: Any) -> MappingIndex:
    loader = {"container": {"modprobe": {"moduleName": "kmod"}, "kernelMappings": mappings, **container}}
    spec = {"spokeNamespace": "spoke", "selector": {}, "moduleSpec": {"selector": {}, "moduleLoader": loader}}
    return MappingIndex(parse_module(spec))


def resolve(mappings: list[Json], kernel: str = KERNEL, **container: Any) -> Resolution:
    return index_of(mappings, **container).resolve(module_name="mod", spoke_namespace="spoke", kernel=kernel)


def entry(**fields: Any) -> Json:
    return {"regexp": ".*", "containerImage": "r.example/k:t", **fields}


# ---------------------------------------------------------------------------------------------- which entry wins


@pytest.mark.parametrize(
    ("mappings", "kernel", "winner"),
    [
        ([{"regexp": "el9"}], KERNEL, 0),
        ([{"literal": KERNEL}], KERNEL, 0),
        ([{"regexp": "^.+$"}, {"literal": KERNEL}], KERNEL, 0),
        ([{"literal": KERNEL}, {"regexp": "^.+$"}], KERNEL, 0),
        ([{"regexp": "el8"}, {"literal": KERNEL}, {"regexp": "el9"}], KERNEL, 1),
        ([{"regexp": "el8"}, {"regexp": "el9"}, {"literal": KERNEL}], KERNEL, 1),
        ([{"literal": "5.1.1"}, {"literal": KERNEL}, {"literal": KERNEL}], KERNEL, 1),
        ([{"regexp": ""}, {}, {"regexp": "."}], KERNEL, 2),
        ([{"literal": "", "regexp": "el9"}], KERNEL, 0),
        ([{"literal": "other", "regexp": "el9"}], KERNEL, 0),
        ([{"literal": KERNEL, "regexp": "nowhere"}], KERNEL, 0),
        ([{"regexp": r"(.*)*\.x86_64z"}, {"regexp": r"\.x86_64$"}], KERNEL, 1),
        ([{"regexp": "1.2.3"}], "1x2y3-1.2", 0),
    ],
)
def test_the_first_entry_that_takes_the_kernel_wins(mappings: list[Json], kernel: str, winner: int) -> None:
    named = [{**fields, "containerImage": f"r.example/k:{number}"} for number, fields in enumerate(mappings)]
    resolution = resolve(named, kernel)
    assert resolution.mapping_index == winner
    assert resolution.image == f"r.example/k:{winner}"
    assert resolution.kernel == kernel
    assert [index for index, _ in index_of(named).explain(kernel)] == list(range(winner))


@pytest.mark.parametrize(
    ("mappings", "kernel"),
    [
        ([], KERNEL),
        ([{"regexp": "^el9$"}], KERNEL),
        ([{"regexp": "EL9"}], KERNEL),
        ([{"literal": KERNEL.upper()}], KERNEL),
        ([{"literal": "5.10.0+"}], "5.10.0"),
        ([{"regexp": ""}], KERNEL),
        ([{"literal": ""}], ""),
        ([{"regexp": "^5.10.0-1.x86_64$"}], "5.10.0-1.x86_64\n"),
    ],
)
def test_no_entry(mappings: list[Json], kernel: str) -> None:
    with pytest.raises(NoMatchingKernel, match=r"kernelMappings: none of \d entries") as error:
        resolve([entry(regexp=None) | fields for fields in mappings], kernel)
    assert error.value.reason == "NoMatchingKernel"


def test_a_module_without_loader_takes_no_kernel() -> None:
    index = MappingIndex(
        parse_module({"spokeNamespace": "s", "selector": {}, "moduleSpec": {"selector": {}}})
    )
    with pytest.raises(NoMatchingKernel):
        index.resolve(module_name="m", spoke_namespace="s", kernel=KERNEL)
    assert index.explain(KERNEL) == ()


@pytest.mark.parametrize(
    ("mappings", "winner"),
    [
        ([{"regexp": "el9"}, {"regexp": "("}], 0),
        ([{"literal": KERNEL}, {"regexp": "("}], 0),
        ([{"regexp": "(", "literal": KERNEL}, {"regexp": "el9"}], 0),
        ([{"regexp": "("}, {"regexp": "el9"}], None),
        ([{"regexp": "("}, {"literal": KERNEL}], None),
        ([{"regexp": "el8"}, {"regexp": "(?=x)"}, {"regexp": "["}], None),
        ([{"regexp": "("}], None),
    ],
)
def test_a_broken_pattern_stops_only_kernels_that_reach_it(mappings: list[Json], winner: int | None) -> None:
    index = index_of([entry(regexp=None) | fields for fields in mappings])
    if winner is not None:
        resolution = index.resolve(module_name="m", spoke_namespace="s", kernel=KERNEL)
        assert resolution.mapping_index == winner
        return
    broken = next(number for number, fields in enumerate(mappings) if fields.get("regexp") in {"(", "(?=x)"})
    for _ in range(2):
        with pytest.raises(InvalidPattern) as error:
            index.resolve(module_name="m", spoke_namespace="s", kernel=KERNEL)
        assert str(error.value).startswith(f"{MAPPINGS}[{broken}].regexp: ")
    position, why = index.explain(KERNEL)[-1]
    assert position == broken
    assert "not valid RE2" in why


def test_explain_says_why_not() -> None:
    index = index_of([entry(literal="5.1.1", regexp=None), entry(regexp="el8"), entry(regexp=""), entry()])
    assert index.explain(KERNEL) == (
        (0, "literal '5.1.1' is another kernel"),
        (1, "regexp 'el8' is not found in it"),
        (2, "has neither literal nor regexp"),
    )


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "literal": st.sampled_from(["1.1.1", "2.2.2"]),
                "regexp": st.sampled_from(["^1", "2$", "x", "."]),
            },
        ),
        max_size=6,
    ),
    st.sampled_from(["1.1.1", "2.2.2", "3.3.3"]),
)
def test_the_index_agrees_with_a_walk_of_the_list(mappings: list[Json], kernel: str) -> None:
    found = {"^1": kernel[0] == "1", "2$": kernel[-1] == "2", "x": False, ".": True, None: False}
    expected = next(
        (
            number
            for number, fields in enumerate(mappings)
            if fields.get("literal") == kernel or found[fields.get("regexp")]
        ),
        None,
    )
    try:
        actual = resolve([entry(regexp=None) | fields for fields in mappings], kernel).mapping_index
    except NoMatchingKernel:
        actual = None
    assert actual == expected


# ------------------------------------------------------------------------------------------------------ templates


@pytest.mark.parametrize(
    ("template", "kernel", "image"),
    [
        ("r.example/k:${KERNEL_XYZ}", "5.8.18-100.fc31.x86_64", "r.example/k:5.8.18"),
        ("r.example/k:$KERNEL_X-$KERNEL_Y-$KERNEL_Z", "5.8.18-100", "r.example/k:5-8-18"),
        ("r.example/k:${KERNEL_FULL_VERSION}", "5.8.18+debug", "r.example/k:5.8.18_debug"),
        ("r.example/k:${KERNEL_VERSION}", "5.11.0+", "r.example/k:5.11.0_"),
        ("r.example/${MOD_NAMESPACE}/${MOD_NAME}:1", KERNEL, "r.example/spoke/mod:1"),
        ("r.example/k:v${NOPE}1", KERNEL, "r.example/k:v1"),
        ("r.example/k:${NOPE:-d}", KERNEL, "r.example/k:d"),
    ],
)
def test_image_templates_see_the_sanitised_kernel(template: str, kernel: str, image: str) -> None:
    assert resolve([entry(containerImage=template)], kernel).image == image


@pytest.mark.parametrize("kernel", ["", "test", "5.10"])
def test_a_malformed_kernel_is_an_error_once_an_entry_takes_it(kernel: str) -> None:
    with pytest.raises(InvalidResolution, match="three parts"):
        resolve([entry()], kernel)
    with pytest.raises(NoMatchingKernel):
        resolve([entry(regexp="el9")], kernel)


def test_errors_of_templates_name_the_field() -> None:
    sign = {"keySecret": {"name": "k"}, "certSecret": {"name": "c"}, "filesToSign": ["/opt/${X"]}
    with pytest.raises(InvalidResolution) as error:
        resolve([entry(), entry()], sign=sign)
    assert str(error.value).startswith(f"{MAPPINGS}[0].sign.filesToSign: ")
    with pytest.raises(InvalidResolution) as error:
        resolve([entry(regexp="el8"), entry(containerImage="i:${KERNEL_XYZ")])
    assert str(error.value).startswith(f"{MAPPINGS}[1].containerImage: ")


# ---------------------------------------------------------------------------------------------------- inheritance


def test_image_from_mapping_else_container() -> None:
    assert resolve([entry()], containerImage="r.example/base:t").image == "r.example/k:t"
    assert resolve([entry(containerImage="")], containerImage="r.example/base:t").image == "r.example/base:t"
    with pytest.raises(InvalidResolution, match="containerImage: missing"):
        resolve([entry(containerImage="")])


@pytest.mark.parametrize(
    ("mapping", "container", "expected"),
    [
        (None, None, Access()),
        ({"insecure": True}, None, Access(insecure=True)),
        (None, {"insecure": True}, Access(insecure=True)),
        ({"insecureSkipTLSVerify": True}, {"insecure": True}, Access(skip_tls_verify=True)),
        ({}, {"insecure": True}, Access()),
    ],
)
def test_registry_tls_is_replaced_as_a_whole(
    mapping: Json | None, container: Json | None, expected: Access
) -> None:
    assert resolve([entry(registryTLS=mapping)], registryTLS=container).tls == expected


@pytest.mark.parametrize(
    ("mapping", "container", "expected"),
    [
        ({}, {}, None),
        ({}, {"inTreeModulesToRemove": ["a", "b"]}, ("a", "b")),
        ({"inTreeModulesToRemove": ["c"]}, {"inTreeModulesToRemove": ["a"]}, ("c",)),
        ({"inTreeModulesToRemove": []}, {"inTreeModulesToRemove": ["a"]}, ()),
        ({"inTreeModulesToRemove": None}, {"inTreeModulesToRemove": ["a"]}, ("a",)),
        ({}, {"inTreeModuleToRemove": "a"}, ("a",)),
        ({"inTreeModuleToRemove": "b"}, {"inTreeModuleToRemove": "a"}, ("b",)),
        ({"inTreeModulesToRemove": ["c"]}, {"inTreeModuleToRemove": "a"}, ("a",)),
        ({"inTreeModuleToRemove": "b"}, {"inTreeModulesToRemove": ["a"]}, ("b",)),
    ],
)
def test_in_tree_modules(mapping: Json, container: Json, expected: tuple[str, ...] | None) -> None:
    assert resolve([entry(**mapping)], **container).in_tree_modules_to_remove == expected


def arg(name: str, value: str) -> Json:
    return {"name": name, "value": value}


def test_no_build_and_no_sign() -> None:
    resolution = resolve([entry()])
    assert resolution.build is None
    assert resolution.sign is None
    assert resolution.dir_name == "/opt"


@pytest.mark.parametrize("level", ["mapping", "container"])
def test_build_on_one_level_is_copied_whole(level: str) -> None:
    build = {
        "dockerfileConfigMap": {"name": "df"},
        "buildArgs": [arg("z", "1"), arg("a", "2")],
        "secrets": [{"name": "s"}],
        "baseImageRegistryTLS": {"insecure": True},
    }
    at_mapping, at_container = (build, None) if level == "mapping" else (None, build)
    resolved = resolve([entry(build=at_mapping)], build=at_container).build
    assert resolved is not None
    assert resolved.dockerfile_config_map == "df"
    assert resolved.user_args == (("z", "1"), ("a", "2"))
    assert resolved.secrets == ("s",)
    assert resolved.base_image_tls == Access(insecure=True)


def test_build_on_both_levels_is_merged() -> None:
    container = {
        "dockerfileConfigMap": {"name": "df1"},
        "buildArgs": [arg("m", "1"), arg("b", "2"), arg("m", "3")],
        "secrets": [{"name": "s1"}],
        "baseImageRegistryTLS": {"insecure": True},
    }
    mapping = {
        "dockerfileConfigMap": {"name": "df2"},
        "buildArgs": [arg("z", "4"), arg("m", "5"), arg("a", "6"), arg("z", "7")],
        "secrets": [{"name": "s2"}, {"name": "s1"}],
        "baseImageRegistryTLS": {"insecureSkipTLSVerify": True},
    }
    resolved = resolve([entry(build=mapping)], build=container).build
    assert resolved is not None
    assert resolved.dockerfile_config_map == "df2"
    assert resolved.user_args == (("m", "5"), ("b", "2"), ("m", "5"), ("a", "6"), ("z", "7"))
    assert resolved.secrets == ("s1", "s2", "s1")
    assert resolved.base_image_tls == Access(insecure=True)


def test_reserved_build_args_have_the_raw_kernel_and_the_modules_own_names() -> None:
    args = [arg("X", "1"), arg("MOD_NAME", "mine"), arg("A", "${KERNEL_X}"), arg("KERNEL_VERSION", "mine")]
    build = {"dockerfileConfigMap": {"name": "df"}, "buildArgs": args}
    resolved = resolve([entry(build=build)], "5.1.0+debug").build
    assert resolved is not None
    assert resolved.build_args == (
        ("X", "1"),
        ("MOD_NAME", "mod"),
        ("A", "${KERNEL_X}"),
        ("KERNEL_VERSION", "5.1.0+debug"),
        ("KERNEL_FULL_VERSION", "5.1.0+debug"),
        ("MOD_NAMESPACE", "spoke"),
    )
    bare = resolve([entry(build={"dockerfileConfigMap": {"name": "df"}})]).build
    assert bare is not None
    assert bare.user_args == ()
    assert [name for name, _ in bare.build_args] == [
        "KERNEL_FULL_VERSION",
        "KERNEL_VERSION",
        "MOD_NAME",
        "MOD_NAMESPACE",
    ]


def test_sign_is_merged_and_expanded_without_the_modules_names() -> None:
    container = {
        "unsignedImage": "r.example/${MOD_NAME}:u",
        "keySecret": {"name": "k1"},
        "certSecret": {"name": "c1"},
        "unsignedImageRegistryTLS": {"insecure": True},
        "filesToSign": ["/opt/${KERNEL_FULL_VERSION}/a.ko"],
    }
    mapping = {
        "keySecret": {"name": "k2"},
        "certSecret": None,
        "unsignedImageRegistryTLS": {"insecureSkipTLSVerify": True},
        "filesToSign": ["/opt/${MOD_NAMESPACE}b.ko"],
    }
    signed = resolve([entry(sign=mapping)], "5.1.0+x", sign=container).sign
    assert signed is not None
    assert (signed.key_secret, signed.cert_secret) == ("k2", "c1")
    assert signed.unsigned_image == "r.example/:u"
    assert signed.unsigned_tls == Access(insecure=True)
    assert signed.files == ("/opt/5.1.0_x/a.ko", "/opt/b.ko")
    override = resolve([entry(sign={**mapping, "unsignedImage": "r.example/other:1"})], sign=container).sign
    assert override is not None
    assert override.unsigned_image == "r.example/other:1"


def test_sign_without_an_unsigned_image() -> None:
    signed = resolve([entry(sign={"keySecret": {"name": "k"}, "certSecret": {"name": "c"}})]).sign
    assert signed is not None
    assert signed.unsigned_image is None
    assert signed.files == ()


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"sign": {"certSecret": {"name": "c"}}}, ".sign.keySecret.name"),
        ({"sign": {"keySecret": {"name": "k"}}}, ".sign.certSecret.name"),
        ({"build": {"buildArgs": []}}, ".build.dockerfileConfigMap.name"),
    ],
)
def test_a_reference_missing_on_both_levels(fields: Json, missing: str) -> None:
    with pytest.raises(InvalidResolution) as error:
        resolve([entry(**fields)])
    assert str(error.value).startswith(f"{MAPPINGS}[0]{missing}: missing")


# ------------------------------------------------------------------------------------------------ purity and cost


def test_equal_questions_get_the_same_answer_object() -> None:
    index = index_of([entry(containerImage="r.example/${MOD_NAME}:${KERNEL_X}")])
    first = index.resolve(module_name="a", spoke_namespace="s", kernel="5.1.1")
    assert index.resolve(module_name="a", spoke_namespace="s", kernel="5.1.1") is first
    assert index.resolve(module_name="b", spoke_namespace="s", kernel="5.1.1").image == "r.example/b:5"
    assert index.resolve(module_name="a", spoke_namespace="s", kernel="6.1.1").image == "r.example/a:6"


def test_more_kernels_than_are_remembered() -> None:
    index = index_of([entry(containerImage="r.example/k:$KERNEL_Z")])
    for number in range(5000):
        resolution = index.resolve(module_name="m", spoke_namespace="s", kernel=f"5.1.{number}")
        assert resolution.image == f"r.example/k:{number}"
    assert index.resolve(module_name="m", spoke_namespace="s", kernel="5.1.0").image == "r.example/k:0"


@given(st.permutations(["5.1.1", "5.2.2", "6.1.1-x86_64", "6.1.1+y", "4.4.4"]))
def test_the_order_of_questions_does_not_matter(kernels: list[str]) -> None:
    mappings = [entry(regexp="^6", containerImage="r.example/six:$KERNEL_VERSION"), entry(regexp="^5")]

    def answer(index: MappingIndex, kernel: str) -> Resolution | str:
        try:
            return index.resolve(module_name="m", spoke_namespace="s", kernel=kernel)
        except NoMatchingKernel as error:
            return str(error)

    shared_index = index_of(mappings)
    for kernel in kernels:
        assert answer(shared_index, kernel) == answer(index_of(mappings), kernel)


@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            keys = list(value)
            random.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    build = {"dockerfileConfigMap": {"name": "df"}, "buildArgs": [arg("z", "1"), arg("b", "2")]}
    more = {
        "dockerfileConfigMap": {"name": "df2"},
        "buildArgs": [arg("y", "1"), arg("a", "2"), arg("b", "3")],
    }
    sign = {
        "keySecret": {"name": "k"},
        "certSecret": {"name": "c"},
        "filesToSign": ["/opt/b.ko", "/opt/a.ko"],
    }
    mapping = entry(build=more, registryTLS={"insecure": True})
    container: Json = {"build": build, "sign": sign}
    assert resolve([shuffled(mapping)], **shuffled(container)) == resolve([mapping], **container)
