"""Training of a matcher, on pairs of pictures and captions."""
