"""Objects for the tests of the CRDs and of admission: small and rich ones, and ways to change them."""

import uuid
from copy import deepcopy
from typing import Any

IMAGE = "registry.example/simple:1"
PLUGIN: dict[str, Any] = {"container": {"image": "registry.example/plugin:1"}}

SMALL_SPEC: dict[str, Any] = {
    "selector": {},
    "moduleLoader": {
        "container": {
            "modprobe": {"moduleName": "simple"},
            "kernelMappings": [{"regexp": "^6\\.", "containerImage": IMAGE}],
        }
    },
}
"""The least that loads a module."""

RICH_SPEC: dict[str, Any] = {
    "selector": {"kubernetes.io/arch": "amd64"},
    "imageRepoSecret": {"name": "pull"},
    "imageRebuildTriggerGeneration": 2,
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}],
    "moduleLoader": {
        "serviceAccountName": "loader",
        "container": {
            "version": "1.0",
            "containerImage": IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "registryTLS": {"insecure": True, "insecureSkipTLSVerify": True},
            "inTreeModulesToRemove": ["old"],
            "build": {
                "dockerfileConfigMap": {"name": "recipe"},
                "buildArgs": [{"name": "DEBUG", "value": ""}],
                "secrets": [{"name": "token"}],
                "baseImageRegistryTLS": {"insecure": True},
                "kanikoParams": {"tag": "v1"},
                "selector": {"build": "yes"},
            },
            "sign": {
                "keySecret": {"name": "key"},
                "certSecret": {"name": "cert"},
                "filesToSign": ["/opt/lib/modules/${KERNEL_VERSION}/simple.ko"],
                "unsignedImage": "registry.example/unsigned:1",
                "unsignedImageRegistryTLS": {"insecureSkipTLSVerify": True},
            },
            "modprobe": {
                "moduleName": "simple",
                "dirName": "/opt",
                "parameters": ["debug=1"],
                "firmwarePath": "/firmware",
                "modulesLoadingOrder": ["simple", "base"],
                "args": {"load": ["-v"], "unload": ["-r"]},
            },
            "kernelMappings": [
                {"literal": "6.1.0-13-amd64", "containerImage": "", "inTreeModulesToRemove": []},
                {
                    "regexp": "^6\\.",
                    "containerImage": IMAGE,
                    "build": {"dockerfileConfigMap": {"name": "other"}},
                    "sign": {
                        "keySecret": {"name": "key"},
                        "certSecret": {"name": "cert"},
                        "filesToSign": ["/opt/lib/modules/*/simple.ko"],
                    },
                    "registryTLS": {"insecure": False},
                },
            ],
        },
    },
    "devicePlugin": {
        "serviceAccountName": "plugin",
        "automountServiceAccountToken": False,
        "volumes": [
            {"name": "dev", "hostPath": {"path": "/dev", "type": "Directory"}},
            {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}},
            {
                "name": "settings",
                "configMap": {"name": "settings", "items": [{"key": "a", "path": "b", "mode": 420}]},
            },
        ],
        "initContainer": {"image": "registry.example/init:1", "command": ["init"], "args": ["-x"]},
        "container": {
            "image": "registry.example/plugin:1",
            "imagePullPolicy": "Always",
            "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
            "resources": {"requests": {"cpu": "100m", "memory": 1048576}, "limits": {"example.com/gpu": 1}},
            "volumeMounts": [{"name": "dev", "mountPath": "/dev", "mountPropagation": "HostToContainer"}],
        },
    },
}

DRA: dict[str, Any] = PLUGIN | {
    "driverName": "gpu.example",
    "deviceClasses": [
        {
            "name": "gpu.example",
            "selectors": [{"cel": {"expression": "device.driver == 'gpu.example'"}}],
            "config": [{"opaque": {"driver": "gpu.example", "parameters": {"any": {"shape": [1, None]}}}}],
        }
    ],
}


RAW_SPEC: dict[str, Any] = {
    "selector": {},
    "moduleLoader": {
        "container": {
            "containerImage": IMAGE,
            "inTreeModuleToRemove": "old",
            "modprobe": {
                "dirName": "/opt",
                "rawArgs": {"load": ["-d", "/opt", "simple"], "unload": ["-d", "/opt", "-r", "simple"]},
            },
            "kernelMappings": [
                {"literal": "6.1.0-13-amd64", "containerImage": "", "inTreeModuleToRemove": "older"}
            ],
        }
    },
}
"""The fields that the rich spec cannot have beside its own."""


def managed_cluster_module(module_spec: dict[str, Any]) -> dict[str, Any]:
    """A ManagedClusterModule of a new name that selects no cluster."""
    return {
        "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1",
        "kind": "ManagedClusterModule",
        "metadata": {"name": f"crd-test-{uuid.uuid4().hex[:8]}"},
        "spec": {
            "selector": {"crd-test": "no-cluster"},
            "spokeNamespace": "kmm",
            "moduleSpec": deepcopy(module_spec),
        },
    }


def module(spec: dict[str, Any]) -> dict[str, Any]:
    """A Module with a spec."""
    return {
        "apiVersion": "kmm.sigs.x-k8s.io/v1beta1",
        "kind": "Module",
        "metadata": {"name": "crd-test", "namespace": "default"},
        "spec": deepcopy(spec),
    }


def changed(path: str, value: Any, spec: dict[str, Any] = RICH_SPEC) -> dict[str, Any]:
    """A copy of the spec with one field set, or removed if the value is None; parents are made."""
    spec = deepcopy(spec)
    *parents, last = path.split(".")
    part: Any = spec
    for name in parents:
        part = part[int(name)] if name.isdecimal() else part.setdefault(name, {})
    if value is None:
        del part[last]
    else:
        part[int(last) if last.isdecimal() else last] = value
    return spec
