"""Commands: thin, each over what the rest of the package does."""
