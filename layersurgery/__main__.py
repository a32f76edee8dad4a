"""`python -m layersurgery` is the same as the command `layersurgery`."""

import sys

from layersurgery.cli import main

sys.exit(main())
