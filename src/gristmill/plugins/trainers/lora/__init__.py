"""Trainer `lora`: a LoRA adapter on the top layers of a chat model."""
