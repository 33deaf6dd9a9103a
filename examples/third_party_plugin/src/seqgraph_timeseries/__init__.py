"""Multivariate forecasting for seqgraph: a token per variate."""
