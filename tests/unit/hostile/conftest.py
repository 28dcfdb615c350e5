"""Budgets for property tests: a short one that repeats itself, and HYPOTHESIS_PROFILE=thorough for a long search.

`hostile_budget` applies them test by test, so that no other folder's tests get them.
"""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "hostile",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.register_profile(
    "thorough",
    parent=settings.get_profile("hostile"),
    derandomize=False,
    print_blob=True,
    max_examples=5000,
)
