"""The onnx engine: classifiers and embedders on ONNX Runtime."""
