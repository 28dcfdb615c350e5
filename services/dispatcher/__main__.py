"""`python -m services.dispatcher` runs the dispatcher."""

import sys

from services.dispatcher.main import main

sys.exit(main())
