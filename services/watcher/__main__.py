"""`python -m services.watcher` runs the watcher."""

import sys

from services.watcher.main import main

sys.exit(main())
