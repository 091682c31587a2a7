"""A package, so that no other package called tests (textstat installs one) takes its place."""
