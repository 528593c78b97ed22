"""``python -m fastlr.cli`` is the command ``fastlr``."""

import sys

from . import main

sys.exit(main())
