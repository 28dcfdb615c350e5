"""What holds for every module, not only for those in the tables."""

import copy
import posixpath
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from modules import CONTAINER, MAPPING, SPEC, Json, changed

from shared.domain.admission import validate, validate_update, warnings
from shared.domain.admission.plugins import clean
from shared.domain.mapping import MappingIndex
from shared.domain.module import parse_module

TEXTS = st.sampled_from(["", "a", "a:t", "r:5000/a", "${", "^5", "(", "A b", "/opt/x", "/etc", "é", "x" * 70])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
PATHS = st.sampled_from(
    [
        "spec",
        "spec.spokeNamespace",
        SPEC,
        f"{SPEC}.tolerations",
        f"{SPEC}.dra",
        f"{SPEC}.devicePlugin",
        f"{SPEC}.moduleLoader",
        CONTAINER,
        f"{CONTAINER}.modprobe",
        f"{CONTAINER}.sign",
        f"{CONTAINER}.kernelMappings",
        f"{CONTAINER}.containerImage",
        f"{MAPPING}.containerImage",
        f"{MAPPING}.literal",
        f"{MAPPING}.regexp",
        f"{MAPPING}.sign",
    ]
)
FIELDS_OF_MAPPINGS = st.fixed_dictionaries(
    {},
    optional={
        "literal": TEXTS,
        "regexp": TEXTS,
        "containerImage": TEXTS,
        "inTreeModuleToRemove": TEXTS,
        "inTreeModulesToRemove": st.none() | st.lists(TEXTS, max_size=2),
    },
)


@given(PATHS, ANY_JSON)
def test_no_input_is_too_wrong_to_be_judged(path: str, value: Any) -> None:
    module = changed({path: value})
    before = copy.deepcopy(module)
    validate(module)
    validate_update(module, changed({}))
    warnings(module)
    assert module == before


@given(st.lists(FIELDS_OF_MAPPINGS, min_size=1, max_size=3), TEXTS)
def test_what_is_allowed_can_be_read_and_has_no_broken_pattern(mappings: list[Json], image: str) -> None:
    module = changed({f"{CONTAINER}.kernelMappings": mappings, f"{CONTAINER}.containerImage": image})
    if validate(module):
        return
    spec = parse_module(module["spec"])
    assert spec.loader is not None
    assert MappingIndex(spec).broken is None
    assert all(entry.container_image or spec.loader.container_image for entry in spec.loader.mappings)
    assert all((entry.literal is None) is not (entry.regexp is None) for entry in spec.loader.mappings)


@given(st.lists(FIELDS_OF_MAPPINGS, min_size=1, max_size=3))
def test_nulls_change_nothing(mappings: list[Json]) -> None:
    names = ("literal", "regexp", "containerImage", "inTreeModuleToRemove", "inTreeModulesToRemove", "sign")
    spelled_out = [dict.fromkeys(names) | mapping for mapping in mappings]
    plain, nulls = (changed({f"{CONTAINER}.kernelMappings": one}) for one in (mappings, spelled_out))
    assert validate(plain) == validate(nulls)


@given(
    st.lists(st.sampled_from(["dev", "etc", "..", ".", ""]), max_size=8).map(
        lambda parts: "/" + "/".join(parts)
    )
)
def test_paths_are_cleaned_as_posix_does(path: str) -> None:
    assert clean(path) == "/" + posixpath.normpath(path).lstrip("/")
    assert clean(clean(path)) == clean(path)
