"""What is frozen: the VLM, its encoders, scorer and vocabulary."""
