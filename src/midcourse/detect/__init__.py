"""Tell texts that machines wrote from those that people wrote, by rewards, at a false-positive rate one chooses."""
