"""The kernel lab and a builder, for tests that name this file in `pytest_plugins`."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_lab import Lab
from own_registry import run_registry

from demo import base_image, kernels
from demo.image_layout import ImageLayout
from services.builder.buildah import Buildah
from shared.registry.client import RegistryClient


async def push(layout: ImageLayout, registry: str) -> None:
    """Copy the base images to a registry."""
    async with RegistryClient() as client:
        await base_image.push_images(layout, registry=registry, client=client)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab; the first run on a machine fetches kernels and makes the base images (about a minute)."""
    packages = kernels.offered_packages()
    versions = kernels.choose_versions(kernels.offered_versions(packages))
    fetched = kernels.fetch_kernels(versions, packages, cache=kernels.cache_directory())
    layout = ImageLayout(base_image.cache_directory())
    base_image.prepare_images(fetched, layout=layout)
    with run_registry(tmp_path_factory.mktemp("registry")) as registry:
        asyncio.run(push(layout, registry.address))
        yield Lab(registry=registry.address, kernels=fetched)


@pytest.fixture(scope="session")
def builder_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the builder keeps its storage."""
    return tmp_path_factory.mktemp("builder")


@pytest.fixture(scope="session")
def builder(builder_directory: Path) -> Buildah:
    """The product's buildah adapter, on an empty storage."""
    return Buildah(builder_directory / "root", builder_directory / "run")
