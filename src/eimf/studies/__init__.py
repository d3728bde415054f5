"""Studies of several runs: suites, comparisons and sweeps."""
