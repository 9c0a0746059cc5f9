"""Live traffic over veth: the data planes that are compared, each in a network of its own, and what loads them.

All networks are alike: a client, a node that routes, one pod.  They exist side by side for the whole run, so that peers
take turns within a second; whichever is not measured is idle.
"""
