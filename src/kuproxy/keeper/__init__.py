"""The process that outlives the control process: it holds what forwarding needs, and starts control again.

`process` is the keeper itself, `vault` the control process's side of it, `wire` what they say to each other.
All of it is the standard library alone, and short: what never ends should do little.
"""
