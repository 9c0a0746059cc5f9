"""`python -m kuproxy` is `ku`."""

from kuproxy.cli import main

main()
