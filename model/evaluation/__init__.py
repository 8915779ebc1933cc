"""The protocols of the evaluation, who takes part, and how tables and pictures are written."""
