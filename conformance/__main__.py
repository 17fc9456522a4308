"""`python -m conformance` is the command `loraspec`."""

import sys

from conformance.cli import main

sys.exit(main())
