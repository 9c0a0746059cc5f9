"""`python -m kuproxy.keeper`: what `ku daemon` runs."""

import sys

from .process import main

if __name__ == "__main__":
    sys.exit(main())
