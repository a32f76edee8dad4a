"""Train the two embedded checkpoints from nothing: `python -m examples.train_tiny_vlm --output DIR`."""
