"""Looking in from outside: where records and keys of a group are, read from topics and committed offsets alone."""
