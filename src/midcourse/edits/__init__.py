"""Edits: what was changed, making edits by a model or by rules, and showing them."""
