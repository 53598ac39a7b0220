"""What street sensors gain from each other: the task `pedestrians` without processes."""
