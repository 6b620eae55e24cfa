"""The algorithm: textual gradient descent, step by step."""
