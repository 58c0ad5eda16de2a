"""What a user runs: pretraining, evaluation, the command line, and what every trainer here shares."""
