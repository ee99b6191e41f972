"""What each command of `llm-mde` takes, and the call that does it."""
