"""The simulated scanner: its setting, beam, geometry and display; `model.speckle` images by it."""
