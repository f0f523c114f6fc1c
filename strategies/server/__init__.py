"""The server's machinery: the round loop, the protocol's carriers, cohorts and costs."""
