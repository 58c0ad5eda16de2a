"""What any long training here needs."""
