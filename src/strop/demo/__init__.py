"""The demonstration: a task, a model made in code, and three trainers, in a few minutes on two cores.

words.py   4,473 words, split into training and held-out words
task.py    spell a word backward: prompts, demonstrations, verifier, pairs, accuracy
model.py   a character tokenizer and a Llama of 0.8M parameters
run.py     SFT, then a reward model, then DPO, with a report (`strop demo`)
"""
