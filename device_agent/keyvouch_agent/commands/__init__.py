"""The commands of `keyvouch-agent`, one module per errand, imported only when it is run."""
