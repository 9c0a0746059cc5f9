"""What users talk about (services, VIPs, pods, settings): immutable values, no arrays."""
