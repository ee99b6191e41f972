"""One run under DeepSpeed: the engine, checkpoints and the loop."""
