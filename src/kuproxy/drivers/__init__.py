"""One module per way in and out for packets, all keeping the contract of `contract.py`."""
