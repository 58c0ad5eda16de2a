"""Computes every number about a generator."""
