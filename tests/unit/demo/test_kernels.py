import pytest

from demo.kernels import (
    NoKernels,
    build_packages,
    choose_versions,
    flavour_of,
    offered_versions,
    read_packages,
)


def stanza(name: str, *depends: str, version: str = "6.1.9-1") -> str:
    return (
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
        f"Depends: {', '.join(depends)}\nDescription: x\n Package: not this one\n"
    )


def kernel(version: str, common: str, kbuild: str) -> str:
    headers = stanza(
        f"linux-headers-{version}",
        f"{common} (= 6.1.9-1)",
        f"{kbuild} (>= 6.1.9-1)",
        "linux-compiler-gcc-12-x86",
        f"linux-image-{version} (= 1) | linux-image-{version}-unsigned (= 1)",
    )
    return headers + "\n" + stanza(f"linux-image-{version}", "kmod", "linux-initramfs-tool")


AVAILABLE = "\n".join(
    [
        kernel("6.1.0-9-amd64", "linux-headers-6.1.0-9-common", "linux-kbuild-6.1"),
        kernel("6.1.0-10-amd64", "linux-headers-6.1.0-10-common", "linux-kbuild-6.1"),
        kernel("6.1.0-10-cloud-amd64", "linux-headers-6.1.0-10-common", "linux-kbuild-6.1"),
        kernel("6.1.0-10-rt-amd64", "linux-headers-6.1.0-10-common-rt", "linux-kbuild-6.1"),
        kernel("6.12.9+deb12-cloud-amd64", "linux-headers-6.12.9+deb12-common", "linux-kbuild-6.12"),
        kernel("6.12.10+deb12-cloud-amd64", "linux-headers-6.12.10+deb12-common", "linux-kbuild-6.12"),
        kernel("6.12-amd64", "linux-headers-6.12.10+deb12-common", "linux-kbuild-6.12"),
        stanza("linux-image-6.1.0-99-amd64"),
        stanza("linux-image-6.1.0-10-amd64-unsigned"),
        stanza("linux-headers-6.1.0-10-common"),
        stanza("linux-kbuild-6.1", "libc6 (>= 2.34)", "libelf1 (>= 0.142)", version="1:6.1.9-1"),
        stanza("linux-compiler-gcc-12-x86", "gcc-12"),
        stanza("gcc-12", "cpp-12"),
    ]
)


def test_only_kernels_that_boot_and_build_are_offered_newest_first() -> None:
    assert offered_versions(read_packages(AVAILABLE)) == (
        "6.12.10+deb12-cloud-amd64",
        "6.12.9+deb12-cloud-amd64",
        "6.1.0-10-rt-amd64",
        "6.1.0-10-cloud-amd64",
        "6.1.0-10-amd64",
        "6.1.0-9-amd64",
    )


def test_the_demo_takes_every_flavour_and_a_plus() -> None:
    assert choose_versions(offered_versions(read_packages(AVAILABLE))) == (
        "6.1.0-10-amd64",
        "6.1.0-10-cloud-amd64",
        "6.1.0-10-rt-amd64",
        "6.12.10+deb12-cloud-amd64",
    )


def test_a_missing_flavour_is_named() -> None:
    with pytest.raises(NoKernels, match="flavour rt-amd64"):
        choose_versions(["6.1.0-10-amd64", "6.1.0-10-cloud-amd64"])


@pytest.mark.parametrize(
    ("version", "flavour"),
    [
        ("6.1.0-10-amd64", "amd64"),
        ("6.12.10+deb12-cloud-amd64", "cloud-amd64"),
        ("6.1.0-10-rt-amd64", "rt-amd64"),
        ("6.1.0-10-amd64-unsigned", ""),
    ],
)
def test_flavours(version: str, flavour: str) -> None:
    assert flavour_of(version) == flavour


def test_a_build_needs_the_headers_and_what_they_depend_on() -> None:
    unpacked, ordinary = build_packages(read_packages(AVAILABLE), "6.1.0-10-cloud-amd64")
    assert [package.file_name for package in unpacked] == [
        "linux-headers-6.1.0-10-cloud-amd64_6.1.9-1_amd64.deb",
        "linux-headers-6.1.0-10-common_6.1.9-1_amd64.deb",
        "linux-kbuild-6.1_1%3a6.1.9-1_amd64.deb",
    ]
    assert ordinary == ("gcc-12", "libc6", "libelf1")


def test_a_package_that_apt_lacks_is_named() -> None:
    with pytest.raises(NoKernels, match=r"linux-headers-6\.1\.0-10-common-rt"):
        build_packages(read_packages(AVAILABLE), "6.1.0-10-rt-amd64")
