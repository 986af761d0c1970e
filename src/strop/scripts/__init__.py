"""Scripts written for TRL: the names that they import, and `strop run`, which runs them as they are.

names.py         name -> where it lives here, or what to use in its place (read by `import strop`, so: no torch)
arguments.py     what scripts parse: model, adapter, quantisation, data sets
parser.py        command line and YAML file -> those arguments and a config
conversations.py rows -> rows: prompts taken out of pairs, pairs taken apart, chat templates applied
templates.py     chat templates: taken from another tokenizer, marked for assistant-only training
packs.py         rows of ids -> packs of ids
progress.py      a live table of a run
completions.py   callbacks that sample from the model at evaluation
averaging.py     callback that averages the weights
distillation.py  DistillationTrainer: GKD with the student's own completions
missing_names.py names that a script takes and that are not here, all in one error
differences.py   what behaves differently from TRL, name by name and setting by setting
alias.py         `trl`, served by strop, in one process
run.py           a script under that alias
"""
