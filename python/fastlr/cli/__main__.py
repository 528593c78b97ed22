"""``python -m fastlr.cli`` is the command ``fastlr``."""

import sys

from fastlr.cli import main

sys.exit(main())
