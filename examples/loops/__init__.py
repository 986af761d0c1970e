"""Whole training loops by hand, on the public functions alone: `python -m examples.loops.dpo`, `...loops.grpo`.

They begin with a tiny random model, so that they run anywhere in seconds; give `load_model` a folder or an id instead.
What the trainers add to them: rows a step that do not depend on micro-batches, processes, resume, checks, reports.
"""
