"""`loraspec demo private-training`: training runs in every mode of a split model, on data that stays with the client.

- `tasks`, `minilm`: what is trained, on what.
- `recording`: a backend that counts what goes through another one.   `server`: a server for the time of a run.
- `training`: one run in one mode.   `estimate`: what an encrypted step would take, where none is run.
- `session`: all runs of one command.   `output`, `plot`: what they leave behind.

`loraspec demo train`: fine-tuning a model by several targets, side by side.

- `fine_tuning`: what is trained, on what.   `learners`: a target's model and its step.
- `train`: all of one command.   `train_output`: what it leaves behind.
"""
