"""A server and devices of several owners: the kit that sets them up, and its rehearsal on one machine."""
