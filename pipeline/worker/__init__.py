"""The shell around the core: gather inputs, step the core, perform effects; execution of handlers; processes."""
