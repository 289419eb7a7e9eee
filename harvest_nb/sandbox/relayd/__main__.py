"""`python -m harvest_nb.sandbox.relayd`: the relay on this machine."""

import sys

from .main import main

sys.exit(main())
