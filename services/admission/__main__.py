"""`python -m services.admission` runs the validating webhook."""

import sys

from services.admission.main import main

sys.exit(main())
