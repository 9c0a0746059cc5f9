"""`python -m kuproxy.kubeproxy`: what `ku kube-proxy` runs, a keeper and below it the control process."""

import sys

from kuproxy.keeper.process import main

if __name__ == "__main__":
    sys.exit(main("kuproxy.kubeproxy.service"))
