"""`python -m kuproxy.keeper MODULE ...`: what `ku daemon` and `ku kube-proxy` run."""

import sys

from .process import main

if __name__ == "__main__":
    sys.exit(main())
