"""The network: a ViT, text prototypes, a language model and a depth head."""
