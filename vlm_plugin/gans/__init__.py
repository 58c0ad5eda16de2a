"""What the trainers of both baselines share."""
