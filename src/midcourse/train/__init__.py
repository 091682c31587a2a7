"""Examples to a reward: objectives, batches, the trainer."""
