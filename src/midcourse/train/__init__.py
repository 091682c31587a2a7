"""Learning rewards from comparisons: read them, batch their prefixes, train."""
