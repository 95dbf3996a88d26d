"""Studying a model: what it costs, what it looks at, and the paper's tables and figures."""
