"""Where candidates come from: one file a source, and `assembly`, which makes candidates of what they propose."""
