"""One module per protocol: where its fields lie, how to read and write them, and when a header is sound."""
