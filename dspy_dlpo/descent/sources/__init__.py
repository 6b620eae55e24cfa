"""Where candidates come from: one file a source, and `assembly`, which makes candidates of what they propose."""

SOURCES = ("SharedFeedback", "CriticSentences", "ProposerEdits", "Rewrite", "Demos", "HalfStep", "Pruning")
"""The sources by name. Where nothing is known yet, they are asked in this order."""
