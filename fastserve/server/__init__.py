"""The HTTP door: OpenAI's routes over an asynchronous engine."""
