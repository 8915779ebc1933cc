"""What the commands do that are more than one call: checks and reports, files, two processes."""
