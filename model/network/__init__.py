"""What the networks are built of, and what is done to an image around them."""
