"""Shipping a model: fused, exported, quantised and measured."""
