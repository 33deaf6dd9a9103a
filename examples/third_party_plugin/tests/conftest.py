pytest_plugins = ["seqgraph.testing.fixtures"]
