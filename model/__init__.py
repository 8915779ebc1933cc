"""Training, evaluation and export of the networks that remove speckle."""
