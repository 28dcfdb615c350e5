"""Modules to be judged: one that is allowed, and changes to it."""

import copy
from typing import Any

Json = dict[str, Any]

ALLOWED: Json = {
    "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1",
    "kind": "ManagedClusterModule",
    "metadata": {"name": "m"},
    "spec": {
        "spokeNamespace": "s",
        "selector": {"a": "b"},
        "moduleSpec": {
            "selector": {"node": "gpu"},
            "moduleLoader": {
                "container": {
                    "modprobe": {"moduleName": "kmod", "dirName": "/opt"},
                    "kernelMappings": [{"regexp": "^5", "containerImage": "image-url:mytag"}],
                }
            },
        },
    },
}
SPEC = "spec.moduleSpec"
CONTAINER = f"{SPEC}.moduleLoader.container"
MAPPING = f"{CONTAINER}.kernelMappings[0]"
ABSENT = object()


def changed(changes: Json) -> Json:
    """`ALLOWED` with the values at these paths replaced; ABSENT takes a field away."""
    module = copy.deepcopy(ALLOWED)
    for path, value in changes.items():
        *parents, last = path.replace("[0]", ".0").split(".")
        place: Any = module
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        if value is ABSENT:
            place.pop(last, None)
        else:
            place[last] = copy.deepcopy(value)
    return module
