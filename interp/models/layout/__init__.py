"""Layout: finding the parts of a model, and proving by effect that they are what they are called."""
