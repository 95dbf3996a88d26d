"""The search for a frequency ramp: which one is best on a user's images, within a budget."""
