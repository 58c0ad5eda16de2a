"""Numbers about generated pictures: which captions are drawn, who scores, what is computed, what is written."""
