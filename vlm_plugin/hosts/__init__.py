"""Brings the loss into the original trainers' repositories."""
