"""How many examples a property is tried with."""

import os

from hypothesis import settings

PROFILE = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "hostile"))


def budget(examples: int) -> settings:
    """Settings for a test that tries `examples` in the normal run, and in proportion more in a thorough one."""
    return settings(PROFILE, max_examples=max(1, examples * PROFILE.max_examples // 100))
