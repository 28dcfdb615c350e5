"""Which clusters a module selects.

Rule: KMM `internal/cluster/cluster.go` lists ManagedClusters by label equality, all labels required.
"""

from collections.abc import Mapping


def is_selected(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Return whether `labels` has every pair of `selector`. An empty selector selects every cluster."""
    return all(labels.get(name) == value for name, value in selector.items())
