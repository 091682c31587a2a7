"""How good a reward or a text is: figures with intervals."""
