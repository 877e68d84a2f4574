"""``python -m batchnorm`` is the command ``batchnorm``."""

import sys

from .cli import main

sys.exit(main())
