"""The files of an image: layers as real tar archives, patterns with bash as the judge."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from services.signer.tree import (
    Directory,
    File,
    PatternInvalid,
    apply_layer,
    find_files,
    find_modules,
)
from shared.registry.errors import ImageUnreadable

FILES = [
    "opt/lib/modules/6.1.0/one.ko",
    "opt/lib/modules/6.1.0/two.ko",
    "opt/lib/modules/6.1.0/deep/three.ko.xz",
    "opt/lib/modules/6.1.0/.hidden.ko",
    "opt/lib/modules/6.1.0/modules.dep",
    "opt/lib/modules/6.12.1+deb12/one.ko",
    "opt/lib/modules/6.12.1+deb12/[odd].ko",
    "opt/lib/modules/6.12.1+deb12/é.ko",
    "opt/lib/modules/6.12.1+deb12/a b*.ko",
    "top.ko",
]
LINKS = {
    "lib": "opt/lib",
    "absolute": "/opt/lib/modules",
    "opt/latest": "lib/modules/6.1.0",
    "opt/link.ko": "../top.ko",
    "opt/up": "../../../..",
    "opt/loop": "loop",
    "opt/dangling": "nowhere",
}


def _entry(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, linkname
    return entry


def _tree(*layers: list[tarfile.TarInfo]) -> Directory:
    root = Directory()
    for index, entries in enumerate(layers):
        apply_layer(root, index, entries)
    return root


def _files(root: Directory, path: str = "") -> dict[str, int]:
    """Every file's path and the layer it is from."""
    found: dict[str, int] = {}
    for name, node in root.children.items():
        if isinstance(node, Directory):
            found |= _files(node, f"{path}/{name}")
        elif isinstance(node, File):
            found[f"{path}/{name}"] = node.layer
    return found


class TestLayers:
    def test_the_highest_layer_wins(self):
        root = _tree([_entry("a/x.ko"), _entry("a/y.ko")], [_entry("./a/x.ko")], [_entry("/b")])
        assert _files(root) == {"/a/x.ko": 1, "/a/y.ko": 0, "/b": 2}

    def test_a_whiteout_hides_what_is_below_alone(self):
        root = _tree([_entry("a/x.ko"), _entry("a/y.ko")], [_entry("a/new.ko"), _entry("a/.wh.x.ko")])
        assert _files(root) == {"/a/y.ko": 0, "/a/new.ko": 1}
        assert _files(_tree([_entry("a/x.ko")], [_entry("a/x.ko"), _entry("a/.wh.x.ko")])) == {"/a/x.ko": 1}

    def test_a_whiteout_hides_a_directory(self):
        assert _files(_tree([_entry("a/b/x.ko"), _entry("c")], [_entry(".wh.a")])) == {"/c": 0}

    def test_an_opaque_directory_hides_all_that_is_below_it(self):
        root = _tree([_entry("a/x.ko"), _entry("a/b/y.ko")], [_entry("a/z.ko"), _entry("a/.wh..wh..opq")])
        assert _files(root) == {"/a/z.ko": 1}

    def test_whiteouts_of_nothing_and_of_old_drivers_do_nothing(self):
        root = _tree(
            [_entry("a/x.ko")], [_entry("b/.wh.x"), _entry("a/.wh..wh.plnk"), _entry("a/x.ko/.wh.y")]
        )
        assert _files(root) == {"/a/x.ko": 0}

    def test_a_file_replaces_a_directory_and_the_other_way_round(self):
        assert _files(_tree([_entry("a/x.ko")], [_entry("a")])) == {"/a": 1}
        assert _files(_tree([_entry("a")], [_entry("a/x.ko")])) == {"/a/x.ko": 1}
        assert _files(_tree([_entry("a/x.ko")], [_entry("a", tarfile.DIRTYPE)])) == {"/a/x.ko": 0}

    def test_a_hard_link_keeps_its_content_when_the_other_name_changes(self):
        root = _tree([_entry("x.ko"), _entry("y.ko", tarfile.LNKTYPE, "./x.ko")], [_entry("x.ko")])
        assert _files(root) == {"/x.ko": 1, "/y.ko": 0}

    def test_files_below_a_symbolic_link_are_where_it_leads(self):
        root = _tree(
            [_entry("usr/lib/x.ko"), _entry("lib", tarfile.SYMTYPE, "usr/lib")], [_entry("lib/y.ko")]
        )
        assert _files(root) == {"/usr/lib/x.ko": 0, "/usr/lib/y.ko": 1}

    def test_devices_hide_files(self):
        assert _files(_tree([_entry("x.ko")], [_entry("x.ko", tarfile.CHRTYPE)])) == {}

    @pytest.mark.parametrize(
        "entry",
        [
            _entry("../x.ko"),
            _entry("a/../../x.ko"),
            _entry("y.ko", tarfile.LNKTYPE, "nothing"),
            _entry("y.ko", tarfile.LNKTYPE, "../etc/shadow"),
            _entry("y.ko", tarfile.LNKTYPE, "a"),
            _entry("loop/x.ko"),
        ],
        ids=lambda entry: f"{entry.name}-{entry.linkname}",
    )
    def test_layers_that_are_refused(self, entry):
        with pytest.raises(ImageUnreadable):
            _tree([_entry("a/x.ko"), _entry("loop", tarfile.SYMTYPE, "loop")], [entry])


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.fixture(scope="session")
def tree(directory: Path) -> Directory:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(directory, ".")
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as archive:
        return _tree(archive.getmembers())


class TestPatterns:
    @pytest.mark.parametrize(
        "pattern",
        [
            "/opt/lib/modules/6.1.0/one.ko",
            "/opt/lib/modules/6.1.0/*.ko",
            "/opt/lib/modules/*/one.ko",
            "/opt/lib/modules/*/*.ko",
            "/opt/*/*/*/*/*.ko.xz",
            "/opt/lib/modules/6.1.0/.*.ko",
            "/opt/lib/modules/6.1.0/???.ko",
            "/opt/lib/modules/6.1.0/[ot]*.ko",
            "/opt/lib/modules/6.1.0/[!o]*.ko",
            "/opt/lib/modules/6.1.0/[^o]*.ko",
            "/opt/lib/modules/6.1.0/[a-o]*.ko",
            "/opt/lib/modules/6.1[.]0/one.ko",
            "/opt/lib/modules/6.12*/one.ko",
            "/opt/lib/modules/6.12.1+deb12/one.ko",
            "/opt/lib/modules/6.12.1+deb12/\\[odd\\].ko",
            "/opt/lib/modules/6.12.1+deb12/[[]odd[]].ko",
            "/opt/lib/modules/6.12.1+deb12/[[:lower:]]*.ko",
            "/opt/lib/modules/6.12.1+deb12/a\\ b\\*.ko",
            "/opt/lib/modules/6.12.1+deb12/é.ko",
            "/opt//lib/./modules/6.1.0/one.ko",
            "/opt/lib/modules/6.1.0/nothing.ko",
            "/opt/nothing/*.ko",
            "/*.ko",
            "/top.ko/x",
            "/opt/lib/modules/6.1.0/one.k[o",
        ],
    )
    def test_the_shell_finds_the_same(self, directory: Path, tree: Directory, pattern: str):
        script = (
            f'for file in {directory}{pattern}; do if [ -f "$file" ]; then printf "%s\\n" "$file"; fi; done'
        )
        command = ["bash", "-c", script]
        done = subprocess.run(command, capture_output=True, timeout=20, check=True, env={"LC_ALL": "C"})
        shown = done.stdout.decode().splitlines()
        expected = [os.path.normpath(path.removeprefix(str(directory))) for path in shown]
        assert sorted(find_files(tree, pattern)) == sorted(expected)

    def test_a_pattern_means_modules_and_a_path_any_file(self, tree: Directory):
        above = "/opt/lib/modules/6.1.0"
        assert list(find_files(tree, f"{above}/*")) == [f"{above}/one.ko", f"{above}/two.ko"]
        assert list(find_files(tree, f"{above}/modules.dep")) == [f"{above}/modules.dep"]

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("/lib/modules/6.1.0/one.ko", ["/opt/lib/modules/6.1.0/one.ko"]),
            ("/absolute/6.1.0/t*.ko", ["/opt/lib/modules/6.1.0/two.ko"]),
            ("/*/modules/6.1.0/one.ko", ["/opt/lib/modules/6.1.0/one.ko"]),
            ("/opt/latest/one.ko", ["/opt/lib/modules/6.1.0/one.ko"]),
            ("/opt/link.ko", ["/top.ko"]),
            ("/opt/up/top.ko", ["/top.ko"]),
            ("/opt/loop/x.ko", []),
            ("/opt/dangling/x.ko", []),
        ],
    )
    def test_symbolic_links_lead_to_real_files_inside_the_image(self, pattern: str, expected: list[str]):
        links = [_entry(name, tarfile.SYMTYPE, target) for name, target in LINKS.items()]
        assert list(find_files(_tree([_entry(name) for name in FILES] + links), pattern)) == expected

    @pytest.mark.parametrize(
        "pattern", ["", "/", "opt/x.ko", "/opt/../etc/x.ko", "/opt/[z-a].ko", "/opt/[[:no:]].ko"]
    )
    def test_what_is_no_pattern_is_refused(self, pattern: str):
        with pytest.raises(PatternInvalid, match="filesToSign"):
            find_files(_tree([_entry("opt/x.ko")]), pattern)

    def test_all_modules_are_listed_once(self, tree: Directory):
        modules = list(find_modules(tree))
        assert modules == sorted(set(modules))
        assert "/opt/lib/modules/6.1.0/deep/three.ko.xz" in modules
        assert "/opt/lib/modules/6.1.0/modules.dep" not in modules

    def test_names_that_are_no_text_are_found(self):
        name = b"opt/\xff.ko".decode(errors="surrogateescape")
        assert list(find_files(_tree([_entry(name)]), "/opt/*.ko")) == [f"/{name}"]
