"""The frozen language model: loaded by name, stepped over cached rows."""
