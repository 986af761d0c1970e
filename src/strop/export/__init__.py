"""What leaves strop: adapters merged into a copy, safetensors, GGUF, an Ollama Modelfile."""

from strop.export.gguf_file import write_gguf
from strop.export.merge import merged

__all__ = ["merged", "write_gguf"]
