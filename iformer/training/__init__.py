"""What the three tasks share in training: recipes, the launcher, checkpoints, exact resumption and optimisation."""
