"""What lies on disk: run folders, checkpoints, tensor files, and names that become local paths."""
