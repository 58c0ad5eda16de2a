"""Trains a matcher."""
