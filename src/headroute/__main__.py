"""`python -m headroute` is the command `headroute`."""

import sys

from headroute.cli import main

sys.exit(main())
