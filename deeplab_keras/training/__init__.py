"""Training: from configs to a workdir of checkpoints. Also losses, optimizers and learning rate schedules."""
