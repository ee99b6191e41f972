"""Frames to tar shards (no torch), and shards to batches."""
