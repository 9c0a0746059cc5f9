"""Arrays and the compiled kernels that forward packets, with no knowledge of the model and no I/O."""
