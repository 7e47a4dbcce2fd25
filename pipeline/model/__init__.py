"""Values, policies, names, errors and the ports to a cluster. No I/O."""
