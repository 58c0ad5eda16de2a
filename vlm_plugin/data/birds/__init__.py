"""Synthetic birds with captions whose truth is known."""
