"""Prompts -> groups of sampled completions -> trees to learn from."""
