"""Downstream tasks of protein models: what their embeddings are worth, beside simple features and random weights."""
