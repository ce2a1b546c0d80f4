"""Encodings of requests, responses and documents: JSON, base64 arrays and safetensors."""
