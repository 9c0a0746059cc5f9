"""Fuzzing: what reads bytes from outside is given damaged ones, and must keep its promise.

    make fuzz ARGS="--minutes 5 --target packets --seed 7"

One file a target, in `targets/`; its first line is the promise. A finding is made as small as it gets and written to
`corpus/`, which `make test` replays. docs/fuzzing.md tells more. Needs the tests' modules (`PYTHONPATH=src:tests`).
"""
