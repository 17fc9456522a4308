"""`python -m loraspec` is the command `loraspec`."""

import sys

from loraspec.console import main

sys.exit(main())
