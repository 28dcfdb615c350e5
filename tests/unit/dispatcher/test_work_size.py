"""How large a work may be: as OCM's webhook counts, to the byte."""

import pytest
from fleet_values import KERNELS, a_module, decided, posted, raw_spec, shipment

from services.dispatcher.assemble import MAX_MANIFEST_BYTES, size_of
from services.dispatcher.decide import Create, Leave, Module, Patch, Why
from shared.domain.work import ObservedWork

A = KERNELS[0]


def of_size(size: int) -> Module:
    """A module whose work has exactly this size."""

    def module(padding: int) -> Module:
        plugin = {"container": {"image": "r.example/plugin:1", "args": ["x" * padding]}}
        return a_module(raw_spec(module={"devicePlugin": plugin}))

    def padded(padding: int) -> int:
        decision = decided({A: shipment(A)}, module=module(padding))
        assert isinstance(decision, Create)
        return size_of(decision.work)

    about = size // 2
    return module(about + size - padded(about))


@pytest.mark.parametrize("stored", [None, posted([shipment(A)])], ids=["new", "posted"])
def test_a_work_may_be_as_large_as_ocm_lets_it_be_and_no_larger(stored: ObservedWork | None) -> None:
    largest = decided({A: shipment(A)}, stored, module=of_size(MAX_MANIFEST_BYTES))
    assert isinstance(largest, Create | Patch)
    assert size_of(largest.work) == MAX_MANIFEST_BYTES == 512_000
    too_large = decided({A: shipment(A)}, stored, module=of_size(MAX_MANIFEST_BYTES + 1))
    assert too_large == Leave(why=Why.TOO_LARGE)


@pytest.mark.parametrize(
    ("manifests", "size"), [([511_996], 512_000), ([511_997], 512_001), ([127], 129), ([128, 127], 131 + 129)]
)
def test_a_work_is_measured_as_ocms_webhook_does(manifests: list[int], size: int) -> None:
    """A manifest is its JSON, a tag byte and a length of seven bits a byte (OCM, package `work/webhook`)."""
    texts = [{"a": "x" * (length - len('{"a":""}'))} for length in manifests]
    assert size_of({"spec": {"workload": {"manifests": texts}}}) == size
