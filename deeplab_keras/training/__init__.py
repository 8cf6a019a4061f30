"""Training runs, losses, optimizers and learning rate schedules."""
