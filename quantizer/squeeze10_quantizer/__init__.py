"""Offline quantization of LLaMA-family checkpoints into the squeeze10 format."""
