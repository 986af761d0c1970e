"""Fifteen files, config and trainer together, the bases of their families, and the registry."""
