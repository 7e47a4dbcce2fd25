"""Pure state machines of the worker: same input, same output. No clock, thread, log or I/O; `now_ms` is an argument."""
