"""Client of the runtime server: start a sandbox, run commands, move files, keep it alive."""
