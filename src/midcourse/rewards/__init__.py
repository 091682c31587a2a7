"""Rewards of prefixes, one file a kind, and the contract that all of them keep."""
