"""Jobs of one partition, as its owner's pure state machine. Start at `board`."""
