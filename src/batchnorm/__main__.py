"""``python -m batchnorm`` is the command ``batchnorm``."""

import sys

from .tools.cli import main

sys.exit(main())
