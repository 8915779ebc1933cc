"""What `model.train` runs: recipes, scenes on disk, who teaches, the loss, what a run leaves."""
