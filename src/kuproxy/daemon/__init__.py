"""The processes around the data plane: supervision, signals, reports."""

import os

# NumPy's OpenBLAS starts a thread per core when it is loaded, and no matrix is ever multiplied here.  Those threads
# would keep the capabilities that all others give up after the start (privilege.py).  Workers inherit the variable.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
