"""Makes what tests of several folders share importable, however pytest was called."""

import sys
from pathlib import Path

for folder in ("", "integration"):
    sys.path.append(str(Path(__file__).parents[1] / folder))
