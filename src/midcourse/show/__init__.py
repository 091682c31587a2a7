"""Tokens coloured by reward, in the terminal and on a page."""
