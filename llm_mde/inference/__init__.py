"""Files to the model and back: adapters, predictions, scores."""
