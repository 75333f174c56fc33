"""A byte-level language model: the parts of `examples/train_language_model.py`.

`options` reads the command line, `data` the text; `model` is the transformer, `training` its steps,
`generation` its way to write; `runs` keeps folders and checkpoints, `report` shows what happens.
"""
