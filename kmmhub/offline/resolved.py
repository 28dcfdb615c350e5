"""What a kernel gets from a module, in the words of KMM's API.

The JSON of `build` and `sign` is that of KMM's Go types (`api/v1beta1/module_types.go`): lists that are not set are
null where Go writes null, and left out where Go leaves them out.
"""

from __future__ import annotations

from typing import Any

from shared.domain.artifact import Access
from shared.domain.mapping import Resolution, ResolvedBuild, ResolvedSign
from shared.domain.module import Build, ModuleLoader

Json = dict[str, Any]


def resolution_to_json(resolution: Resolution, loader: ModuleLoader) -> Json:
    """`containerImage`, `build`, `sign`, `registryTLS` and `inTreeModulesToRemove` of one kernel.

    Args:
        resolution: what the kernel gets.
        loader: the module's loader that it comes from.
    """
    build, sign, in_tree = resolution.build, resolution.sign, resolution.in_tree_modules_to_remove
    # Settings of the build's pod are never merged: where the container has a build section, they are its.
    pod = loader.build or loader.mappings[resolution.mapping_index].build
    return {
        "containerImage": resolution.image,
        "build": build and _build(build) | (_pod(pod) if pod else {}),
        "sign": sign and _sign(sign),
        "registryTLS": _access(resolution.tls),
        "inTreeModulesToRemove": None if in_tree is None else list(in_tree),
    }


def _build(build: ResolvedBuild) -> Json:
    return {
        "dockerfileConfigMap": {"name": build.dockerfile_config_map},
        "buildArgs": [{"name": name, "value": value} for name, value in build.user_args] or None,
        "baseImageRegistryTLS": _access(build.base_image_tls),
        "secrets": [{"name": name} for name in build.secrets] or None,
    }


def _pod(build: Build) -> Json:
    kaniko = {"kanikoParams": {"tag": build.kaniko_tag}} if build.kaniko_tag else {}
    return kaniko | ({"selector": dict(build.selector)} if build.selector else {})


def _sign(sign: ResolvedSign) -> Json:
    return {
        **({"unsignedImage": sign.unsigned_image} if sign.unsigned_image else {}),
        "unsignedImageRegistryTLS": _access(sign.unsigned_tls),
        "keySecret": {"name": sign.key_secret},
        "certSecret": {"name": sign.cert_secret},
        **({"filesToSign": list(sign.files)} if sign.files else {}),
    }


def _access(access: Access) -> Json:
    values = {"insecure": access.insecure, "insecureSkipTLSVerify": access.skip_tls_verify}
    return {name: True for name, is_set in values.items() if is_set}
