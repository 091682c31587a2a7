"""Proximal policy optimisation with a reward for every token."""
