"""Files to examples and examples to files."""
