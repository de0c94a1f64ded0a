"""What tests of several rooms share: models, hostile files, servers, scripts for subprocesses."""
