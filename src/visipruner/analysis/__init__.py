"""See how a multimodal model uses its visual tokens."""
