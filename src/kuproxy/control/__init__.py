"""From model to tables: the validated store, the endpoint policy and the compiler, without I/O or clock."""
