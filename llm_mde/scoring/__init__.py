"""Losses, metrics, and the protocols they are taken under."""
