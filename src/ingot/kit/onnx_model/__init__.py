"""ONNX models: the modules that are exported, the graph and its weights, what is checked of the file."""
