"""`ku demo`: the data plane on real connections, between network namespaces that it makes and removes itself."""
