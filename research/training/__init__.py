"""Trains what joins the pretrained parts: warm start of the projector, then LoRA and projector together."""
