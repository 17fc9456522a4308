"""`loraspec demo private-training`: training runs in every mode of a split model, on data that stays with the client.

- `tasks`, `minilm`, `llama`: the models and their data.
- `recording`: a backend that counts the traffic of another one.   `server`: a server for the time of a run.
- `training`: one run in one mode.   `estimate`: the estimated time of an encrypted step, for models too large to run.
- `session`: all runs of one command.   `output`, `plot`: the files they write.

`loraspec demo train`: fine-tuning of one model by several targets, side by side.

- `fine_tuning`: the models and their data.   `learners`: a target's model and its training step.
- `train`: the whole command.   `train_output`: the files it writes.
"""
