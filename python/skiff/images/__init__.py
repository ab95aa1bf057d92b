"""Images of the sandboxes and of the packages that tasks are made from."""
