"""Packets: the mutator and its vectors (compiled), the worlds, the runs."""
