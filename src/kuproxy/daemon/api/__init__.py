"""The daemon's HTTP interface: what it offers, who may use it, and how it is described."""
