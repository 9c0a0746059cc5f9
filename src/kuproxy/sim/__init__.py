"""What would happen: traces through the real graph while pods come and go, beside other ways to choose a pod.

It stands above the engine, the plane and control, and nothing of the package knows it.  Its kernels are its own: the
data plane's are made of the same files with it and without it.
"""
