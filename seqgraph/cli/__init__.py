"""The ``seqgraph`` program. Each command is a module of its own, imported when it is the one that runs."""
