"""`python -m services.builder` runs the builder."""

import sys

from services.builder.main import main

sys.exit(main())
