"""Where programs are looked for, and that their versions agree with what pins them."""

from pathlib import Path

import pytest

from localhub import ocm
from localhub.programs import MODULES, SOURCES, Programs, pinned_version
from localhub.toolchain import SUITABLE


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize("name", SOURCES)
def test_every_program_is_pinned_with_checksums(name: str) -> None:
    source = SOURCES[name]
    version = pinned_version(source.folder, source.module)
    sums = (MODULES / source.folder / "go.sum").read_text()
    assert f"{source.module} {version} h1:" in sums


def test_ocm_is_pinned_with_checksums() -> None:
    assert f"{ocm.MODULE} {pinned_version('ocm', ocm.MODULE)} h1:" in (MODULES / "ocm" / "go.sum").read_text()


def test_assets_win_over_the_cache(tmp_path: Path) -> None:
    version = pinned_version("kubernetes", "k8s.io/kubernetes")
    cached = Programs(cache=tmp_path / "cache")
    assert cached.find("kubectl") is None
    asset = program(tmp_path / "assets" / "kubectl")
    both = Programs(cache=tmp_path / "cache", assets=tmp_path / "assets")
    assert both.find("kubectl") == asset
    assert both.find("kube-apiserver") is None
    for folder in (tmp_path / "cache").glob("*"):
        assert version in folder.name


@pytest.mark.parametrize(
    ("text", "suitable"),
    [
        ("go1.26.8\n", True),
        ("go1.26.0 X:nocoverageredesign", True),
        ("go1.27.0", False),
        ("go1.25.9", False),
        ("", False),
    ],
)
def test_only_go_1_26_builds_kubernetes_1_36(text: str, suitable: bool) -> None:
    assert (SUITABLE.match(text) is not None) is suitable
