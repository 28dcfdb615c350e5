"""`python -m services.signer` runs the signer."""

import sys

from services.signer.main import main

sys.exit(main())
