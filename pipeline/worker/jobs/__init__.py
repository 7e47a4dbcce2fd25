"""Jobs at work: the boards of owned partitions hosted on the engine, their store written, their handlers run."""
