"""Makes reports and sheets of pictures."""
