"""``seqgraph serve``: a small HTTP service of lists that change with each event."""
