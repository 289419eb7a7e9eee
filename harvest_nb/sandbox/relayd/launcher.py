"""The relay's command in an image: this file as `relay.py`, and beside it the package as `relayd`."""

import sys
from importlib import import_module

sys.exit(import_module("relayd.main").main())
