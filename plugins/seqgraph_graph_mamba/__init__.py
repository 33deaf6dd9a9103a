"""Graph-Mamba for seqgraph: molecules and other graphs. See README.md."""
