"""What a run will need: `train.py --plan`."""
