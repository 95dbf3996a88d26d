"""What the tasks share: optimisation and callbacks."""
