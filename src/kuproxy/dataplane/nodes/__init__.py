"""One module per node of the packet graph; no node imports another."""
