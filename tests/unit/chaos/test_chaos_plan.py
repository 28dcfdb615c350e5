"""The plan of a seed, and what the user wants after it."""

from collections import Counter

import pytest

from chaos.inputs import (
    AddCluster,
    AddModule,
    ChangeModule,
    Cluster,
    DeleteModule,
    Inputs,
    Module,
    ModuleKind,
    Moment,
    Relabel,
    SetKernels,
    apply,
    could_be_wanted,
    desired_kernels,
)
from chaos.plan import CLUSTERS, MODULES, PROCESSES, STREAMS, FaultKind, make_plan

TARGETS = {
    FaultKind.KILL: PROCESSES,
    FaultKind.PAUSE: PROCESSES,
    FaultKind.RESTART: PROCESSES,
    FaultKind.STREAM_DELETED: STREAMS,
    FaultKind.CONSUMER_DELETED: STREAMS,
}


def test_a_seed_gives_the_same_plan_and_another_seed_another_one() -> None:
    assert make_plan(3, 60) == make_plan(3, 60)
    assert make_plan(3, 60) != make_plan(4, 60)


def test_a_longer_plan_begins_like_a_shorter_one() -> None:
    assert make_plan(3, 90).faults[:60] == make_plan(3, 60).faults


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_of_fault_occurs_in_two_hundred(seed: int) -> None:
    plan = make_plan(seed, 200)
    kinds = Counter(fault.kind for fault in plan.faults)
    assert set(kinds) == set(FaultKind)
    assert sum(fault.gap for fault in plan.faults) < 480
    for fault in plan.faults:
        assert (fault.target in TARGETS[fault.kind]) if fault.kind in TARGETS else not fault.target


@pytest.mark.parametrize("seed", range(20))
def test_the_actions_of_a_plan_lead_to_its_inputs(seed: int) -> None:
    plan = make_plan(seed, 100)
    inputs = Inputs()
    for action in (*plan.first, *(action for fault in plan.faults for action in fault.actions)):
        inputs = apply(inputs, action)  # a KeyError if it concerned what is not there
        assert len(inputs.clusters) <= CLUSTERS[1]
        assert len(inputs.modules) <= MODULES[1]
    assert inputs == plan.inputs
    assert all(cluster.kernels for cluster in inputs.clusters.values())


def test_a_run_begins_with_a_module_of_each_kind() -> None:
    kinds = [action.kind for action in make_plan(1, 1).first if isinstance(action, AddModule)]
    assert kinds == list(ModuleKind)


def test_what_is_wanted_follows_labels_and_kernels() -> None:
    inputs = Inputs()
    for action in (
        AddCluster(name="c1", label="east", kernels=("k1", "k2")),
        AddCluster(name="c2", label="west", kernels=("k3",)),
        AddModule(name="m1", kind=ModuleKind.BUILT, select="east", version=1),
        AddModule(name="m2", kind=ModuleKind.BROKEN, select="west", version=1),
        AddModule(name="m3", kind=ModuleKind.ADOPTED, select="west", version=1),
    ):
        inputs = apply(inputs, action)
    assert desired_kernels(inputs) == {("m1", "c1"): {"k1", "k2"}, ("m3", "c2"): {"k3"}}
    inputs = apply(
        apply(inputs, Relabel(cluster="c1", label="west")), SetKernels(cluster="c2", kernels=("k4",))
    )
    assert desired_kernels(inputs) == {("m3", "c1"): {"k1", "k2"}, ("m3", "c2"): {"k4"}}
    inputs = apply(apply(inputs, DeleteModule(name="m3")), ChangeModule(name="m1", version=2))
    assert desired_kernels(inputs) == {}
    assert inputs.modules["m1"].version == 2


HISTORY = [
    Moment(since=0, inputs=Inputs()),
    Moment(
        since=10,
        inputs=Inputs(
            clusters={"c1": Cluster(label="east", kernels=("k1",))},
            modules={"m1": Module(kind=ModuleKind.BUILT, select="east", version=1)},
        ),
    ),
    Moment(
        since=50,
        inputs=Inputs(
            clusters={"c1": Cluster(label="west", kernels=("k2",))},
            modules={"m1": Module(kind=ModuleKind.BUILT, select="east", version=1)},
        ),
    ),
]


def test_a_work_may_be_written_from_knowledge_that_is_not_too_old() -> None:
    place = ("m1", "c1")
    assert could_be_wanted(HISTORY, place, frozenset({"k1"}), since=49) == ""
    assert could_be_wanted(HISTORY, place, frozenset({"k1", "k2"}), since=49) == ""
    assert "does not select" in could_be_wanted(HISTORY, place, frozenset({"k1"}), since=51)
    assert "does not run k3" in could_be_wanted(HISTORY, place, frozenset({"k3"}), since=0)
    assert "not there" in could_be_wanted(HISTORY, ("m2", "c1"), frozenset({"k1"}), since=0)
