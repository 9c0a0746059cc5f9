"""The processes around the data plane: supervision, signals, reports."""
