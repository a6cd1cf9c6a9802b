"""GGUF: read, name, lay out, write and check llama.cpp's model files."""
