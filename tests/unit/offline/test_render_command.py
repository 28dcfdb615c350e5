"""`kmmhub render`: the works, in which order, and what is missing."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import CLAIM, Ended, Json, cluster, module, run, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dispatcher.assemble import Owner, Shipment, draft_work, pin
from shared.domain.mapping import MappingIndex
from shared.domain.module import parse_module
from shared.domain.work import HASH_ANNOTATION

DIGEST = "sha256:" + "a" * 64
KERNELS = ("5.1.1", "5.2.2", "6.1.1", "6.1.1+")


def render(*documents: Json, arguments: tuple[str, ...] = ()) -> Ended:
    return run("render", "-f", "-", *arguments, documents=list(documents))


def works(ended: Ended) -> list[Json]:
    return [work for work in yaml.safe_load_all(ended.out) if work is not None]


def images(work: Json) -> Json:
    (shipped,) = work["spec"]["workload"]["manifests"]
    mappings = shipped["spec"]["moduleLoader"]["container"]["kernelMappings"]
    return {mapping["literal"]: mapping["containerImage"] for mapping in mappings}


def test_works_stand_by_module_and_cluster_name() -> None:
    other = module(spec_of(selector={}), name="a")
    clusters = [cluster("c2", "5.1.1"), cluster("c1", "5.2.2", "5.1.1"), cluster("x", "5.1.1", labels={})]
    ended = render(module(), *clusters, other)
    found = [(work["metadata"]["name"], work["metadata"]["namespace"]) for work in works(ended)]
    assert found == [("m", "c1"), ("m", "c2"), ("a", "c1"), ("a", "c2"), ("a", "x")]
    assert (ended.status, ended.err) == (0, "")
    assert images(works(ended)[0]) == {"5.1.1": "r.example/k:5.1.1", "5.2.2": "r.example/k:5.2.2"}


def test_works_are_the_dispatchers_byte_for_byte(tmp_path: Path) -> None:
    known = tmp_path / "digests.json"
    known.write_text(json.dumps({"r.example/k:5.1.1": DIGEST}))
    given_module = module(spec_of(registryTLS={"insecure": True}), uid="u-1")
    ended = render(given_module, cluster("c1", "5.1.1"), arguments=("-o", "json", "--digests", str(known)))
    spec = parse_module(given_module["spec"])
    found = MappingIndex(spec).resolve(module_name="m", spoke_namespace="s", kernel="5.1.1")
    shipment = Shipment(resolution=found, image=pin(found.image, DIGEST), tag=found.image)
    expected = draft_work(owner=Owner(name="m", uid="u-1"), spec=spec, shipments=[shipment]).work_for("c1")
    assert json.loads(ended.out) == expected
    assert ended.err == ""


def test_spelling_does_not_change_the_hash() -> None:
    """The API server fills in defaults and drops nulls and unknown fields before the dispatcher sees a module."""
    plain = spec_of(modprobe={"moduleName": "kmod"})
    spelled = spec_of(modprobe={"moduleName": "kmod", "dirName": "/opt", "args": None}, sign=None, typo=1)
    hashes = {
        works(render(module(spec), cluster("c1", "5.1.1")))[0]["metadata"]["annotations"][HASH_ANNOTATION]
        for spec in (plain, spelled)
    }
    assert len(hashes) == 1


def test_comments_say_what_differs_from_the_hubs_works(tmp_path: Path) -> None:
    comments = [
        line for line in render(module(), cluster("c1", "5.1.1")).out.splitlines() if line.startswith("#")
    ]
    assert ["--digests" in line for line in comments] == [True, False]
    assert "metadata.uid" in comments[1]
    known = tmp_path / "digests.yaml"
    known.write_text(f"r.example/k:5.1.1: {DIGEST}\n")
    ended = render(module(uid="u"), cluster("c1", "5.1.1"), arguments=("--digests", str(known)))
    assert "#" not in ended.out
    assert images(works(ended)[0]) == {"5.1.1": f"r.example/k@{DIGEST}"}


@pytest.mark.parametrize(
    ("image", "known", "shipped"),
    [
        ("r.example/k:t", {"r.example/k:t": DIGEST}, f"r.example/k@{DIGEST}"),
        ("r.example:5000/k:t", {"r.example:5000/k:t": DIGEST}, f"r.example:5000/k@{DIGEST}"),
        ("r.example/k", {"r.example/k:latest": DIGEST}, f"r.example/k@{DIGEST}"),
        ("r.example/k@sha256:bb", {}, "r.example/k@sha256:bb"),
        ("r.example/k:t", {"r.example/k:u": DIGEST}, None),
    ],
)
def test_digests_by_reference(tmp_path: Path, image: str, known: Json, shipped: str | None) -> None:
    file = tmp_path / "digests.yaml"
    file.write_text(yaml.safe_dump(known))
    spec = spec_of({"regexp": "^5", "containerImage": image})
    ended = render(module(spec), cluster("c1", "5.1.1"), arguments=("--digests", str(file)))
    assert [images(work) for work in works(ended)] == ([{"5.1.1": shipped}] if shipped else [])
    assert ended.status == 0
    missing = f"cluster c1: module m: kernel 5.1.1 is left out: image {image} is not among the digests; add it there\n"
    assert (missing in ended.err) is (shipped is None)


def test_what_is_missing_names_the_cluster() -> None:
    ended = render(
        module(spec_of({"regexp": "^5", "containerImage": "r.example/k:${KERNEL_XYZ}"})),
        cluster("c1", "5.1.1", "4.1.1", "no kernel"),
        cluster("c2", has_claim=False),
        cluster("c3", "4.1.1"),
        cluster("c4", ""),
        cluster("c5", labels={}, has_claim=False),
    )
    assert ended.status == 0
    assert [images(work) for work in works(ended)] == [{"5.1.1": "r.example/k:5.1.1"}]
    lines = ended.err.splitlines()
    assert [line[:12] for line in lines] == ["cluster c1: "] * 2 + [
        "cluster c2: ",
        "cluster c3: ",
        "cluster c4: ",
    ]
    assert "its claim has an entry that is left out: kernel 'no kernel'" in lines[0]
    assert "kernel 4.1.1 is left out: " in lines[1]
    assert f"it has no claim {CLAIM}" in lines[2]
    assert "kernel 4.1.1 is left out: " in lines[3]
    assert "names no kernel" in lines[4]


def test_configmaps_and_secrets_need_not_be_there() -> None:
    mapping = {
        "regexp": "^5",
        "containerImage": "r.example/k:t",
        "build": {"dockerfileConfigMap": {"name": "d"}, "secrets": [{"name": "s"}]},
        "sign": {"keySecret": {"name": "k"}, "certSecret": {"name": "c"}, "filesToSign": ["/opt/a.ko"]},
    }
    spec = spec_of(mapping)
    spec["moduleSpec"]["imageRepoSecret"] = {"name": "pull"}
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "d"}}
    ended = render(module(spec), config_map, {"kind": "Pod"}, cluster("c1", "5.1.1"))
    assert images(works(ended)[0]) == {"5.1.1": "r.example/k:t"}
    assert ended.err == "standard input, document 3: skipped, it is a Pod\n"


def test_a_module_without_loader_needs_no_claim() -> None:
    spec = {
        "spokeNamespace": "s",
        "selector": {},
        "moduleSpec": {"selector": {}, "devicePlugin": {"container": {"image": "i:t"}}},
    }
    ended = render(module(spec), cluster("c1", has_claim=False))
    assert len(works(ended)) == 1
    assert ended.err == f"cluster c1: module m: it has no claim {CLAIM}: its work needs none\n"


@pytest.mark.parametrize(
    ("spec", "metadata", "status", "line"),
    [
        ({"selector": {}}, {}, 1, "module m: no works: spec.spokeNamespace: missing"),
        (spec_of(), {"deletionTimestamp": "2026-01-01T00:00:00Z"}, 0, "module m: is being deleted"),
        (
            spec_of({"regexp": "(", "containerImage": "i:t"}),
            {},
            0,
            "cluster c1: module m: kernel 5.1.1 ",
        ),
        (
            spec_of({"regexp": "5", "containerImage": "A:t"}),
            {},
            0,
            "cluster c1: module m: kernel 5.1.1 ",
        ),
        (
            spec_of(containerImage="i:t" + "x" * 600_000),
            {},
            1,
            "cluster c1: module m: no work: ",
        ),
    ],
)
def test_modules_without_works(spec: Json, metadata: Json, status: int, line: str) -> None:
    ended = render(module(spec, **metadata), cluster("c1", "5.1.1"))
    assert (ended.status, ended.out) == (status, "")
    assert ended.err.startswith(line)


def test_one_wrong_module_holds_up_no_other() -> None:
    ended = render(module({"selector": {}}, name="bad"), module(), cluster("c1", "5.1.1"))
    assert (ended.status, len(works(ended))) == (1, 1)


def test_files_can_be_several(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("module", "one", "two")]
    for name, document in zip(names, (module(), cluster("c1", "5.1.1"), cluster("c2", "5.1.1")), strict=True):
        Path(name).write_text(yaml.safe_dump(document))
    after_one = run("render", "-f", *names)
    each = run("render", *itertools.chain.from_iterable(("-f", name) for name in names))
    assert len(works(after_one)) == 2
    assert after_one == each


@pytest.mark.parametrize(
    ("documents", "complaint"),
    [
        ([cluster("c")], "-: has no ManagedClusterModule"),
        ([module(name="")], "standard input, document 1: metadata.name is missing"),
        ([module(), {"kind": "ManagedCluster"}], "standard input, document 2: metadata.name is missing"),
        ([module(), cluster("c"), cluster("c")], "standard input, document 3: cluster 'c' is there twice"),
        (
            [module(), cluster("c", labels={"a": 1})],
            "standard input, document 2: cluster 'c' cannot be read: ",
        ),
    ],
)
def test_input_that_cannot_be_used(documents: list[Json], complaint: str) -> None:
    ended = render(*documents)
    assert (ended.status, ended.out) == (2, "")
    assert complaint.replace("-: has", "standard input: has") in ended.err


@pytest.mark.parametrize("digest", ["latest", 5, None, "sha256:", "name@sha256:aa"])
def test_digests_that_are_none(tmp_path: Path, digest: Any) -> None:
    file = tmp_path / "digests.yaml"
    file.write_text(yaml.safe_dump({"r.example/k:t": digest}))
    ended = render(module(), cluster("c1"), arguments=("--digests", str(file)))
    assert ended.status == 2
    assert "r.example/k:t: " in ended.err


def test_without_clusters_there_is_nothing_to_do() -> None:
    ended = render(module())
    assert (ended.status, ended.out) == (0, "")
    assert ended.err == "there is no ManagedCluster in the files: no works\n"


FLEETS = st.dictionaries(
    st.sampled_from(["c1", "c2", "c3", "c4"]), st.lists(st.sampled_from(KERNELS), max_size=3), min_size=1
)


@settings(max_examples=30)
@given(FLEETS, st.randoms(use_true_random=False))
def test_a_work_depends_on_its_own_cluster_alone(fleet: dict[str, list[str]], random: Any) -> None:
    clusters = [cluster(name, *kernels) for name, kernels in fleet.items()]
    together = render(module(), *clusters).out
    random.shuffle(clusters)
    assert render(*clusters, module()).out == together
    alone = "".join(render(module(), cluster(name, *fleet[name])).out for name in sorted(fleet))
    assert alone == together


@settings(max_examples=30)
@given(FLEETS)
def test_render_ships_what_explain_says(fleet: dict[str, list[str]]) -> None:
    spec = spec_of(
        {"literal": "6.1.1", "containerImage": "r.example/six:t"},
        {"regexp": "^5", "containerImage": "r.example/${MOD_NAME}:${KERNEL_FULL_VERSION}"},
    )
    found = works(render(module(spec), *(cluster(name, *kernels) for name, kernels in fleet.items())))
    for work in found:
        for literal, image in images(work).items():
            ended = run("explain", "-f", "-", "--kernel", literal, "-o", "json", documents=[module(spec)])
            assert json.loads(ended.out)["containerImage"] == image
            kernels = fleet[work["metadata"]["namespace"]]
            assert literal in {kernel.removesuffix("+") for kernel in kernels}
