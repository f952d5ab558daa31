"""``python -m minnow``: how launchers such as torchrun start a command."""

import sys

from minnow.cli import main

sys.exit(main())
