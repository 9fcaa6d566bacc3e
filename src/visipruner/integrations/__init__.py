"""Plug-ins for evaluation harnesses. Each is imported by its harness alone; `answering` is what they share."""
