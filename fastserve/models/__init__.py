"""What a model is: its configuration, the names of its weights, and its forward pass, written once."""
