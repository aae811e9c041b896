"""Trainings of several losses, folds and seeds, and what may be said of their differences."""
