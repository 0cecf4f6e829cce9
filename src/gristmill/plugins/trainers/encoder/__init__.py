"""Trainer `encoder`: text classifiers on BERT-like bases, and their export to ONNX."""
