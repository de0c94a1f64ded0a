"""What executes int8 models: one file per runtime behind one small interface."""
