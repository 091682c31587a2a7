"""Prompt to text: short-list candidates, guide, draw, step."""
