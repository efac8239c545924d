"""Read checkpoint containers safely: safetensors, zip, pickle."""
